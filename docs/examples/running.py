"""A server for the examples: `fathom serve` in a process of its own, as a service manager would run it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(model: str) -> Iterator[str]:
    """Start `fathom serve` on a free port, give its address, and end it as a service manager would."""
    command = [str(Path(sys.executable).with_name("fathom")), "serve", model, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        yield next(found[0] for line in process.stderr if (found := re.search(r"http://[\d.:]+", line)))
    finally:
        process.terminate()
        process.communicate()
        print("the server ended with", process.returncode)
