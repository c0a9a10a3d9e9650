"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fathom.errors import DataError, ResourceError


@contextmanager
def publishing(directory: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``directory`` that takes its name when the block succeeds.

    If the block fails nothing is left. A folder already there must be empty (``DataError`` otherwise). A full disk
    raises ``ResourceError``.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DataError(f"{directory}: exists and is not empty; delete it, or choose another folder")
    temporary: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
        temporary.chmod(0o755)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        if directory.exists():
            directory.rmdir()
        os.replace(temporary, directory)
    except OSError as error:
        raise resource_error(directory, error) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def resource_error(path: Path, error: OSError) -> ResourceError:
    """Say in one line why ``path`` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"{path}: the disk is full; free some space or choose another disk, then run again")
    return ResourceError(f"{path}: cannot be written ({error.strerror or error}); check the folder and its permissions")


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
