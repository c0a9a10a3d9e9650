"""Patterns that no published tokenizer has are tried on hostile texts once, by a process with limits.

A pattern whose time grows by the square of a text, or faster, holds whoever encodes a long text.
"""

from __future__ import annotations

import json
import subprocess
from functools import lru_cache
from pathlib import Path

from fathom.errors import DataError, ResourceError
from fathom.isolated import bare_environment, bare_python, package_folder
from fathom.tokenizer.pattern_worker import CHARS, PROCESSOR_SECONDS
from fathom.tokenizer.patterns import is_published

_WORKER = Path(__file__).with_name("pattern_worker.py")
_WALL_SECONDS = 30.0
_MEMORY_BYTES = 1 << 30


def check_pattern(field: str, pattern: str) -> None:
    """Refuse a pattern that takes long on some text.

    Raises:
        DataError: names the field and the pattern.
        ResourceError: no process can be started.
    """
    if is_published(pattern):
        return
    problem = _problem(pattern)
    if problem is not None:
        raise DataError(f"tokenizer.json: {field}: the pattern {pattern!r:.80} {problem}; use another tokenizer")


@lru_cache(maxsize=1024)
def _problem(pattern: str) -> str | None:
    try:
        tried = subprocess.run(
            bare_python(_WORKER, package_folder("tokenizers"), str(_MEMORY_BYTES)),
            input=json.dumps(pattern).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=bare_environment(),
            timeout=_WALL_SECONDS,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return f"takes more than {_WALL_SECONDS:g} s for some texts of {CHARS} characters"
    except OSError as error:
        raise ResourceError(f"tokenizer.json: its patterns cannot be tried ({error}); free memory") from None
    if tried.returncode == 0:
        return None
    if tried.returncode == 1:
        return f"cannot be used ({tried.stdout.decode(errors='replace')[:200]})"
    return f"takes more than {PROCESSOR_SECONDS:g} s for some texts of {CHARS} characters"
