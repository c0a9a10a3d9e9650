"""Finding the files of a model directory: by name in any case, through links, and what stands there in their place."""

from __future__ import annotations

import os
from pathlib import Path

from fathom.errors import CheckpointError, explain_os_error


def find_file(directory: Path, name: str) -> Path | None:
    """Return a file of a directory by its name, in any case where the very name is not there; None without one.

    Raises:
        CheckpointError: a link of that name leads nowhere.
    """
    exact = directory / name
    if exact.is_file():
        return exact
    check_link(exact)
    found = [file for file in list_directory(directory) if file.name.lower() == name.lower()]
    for file in found:
        check_link(file)
    return next((file for file in found if file.is_file()), None)


def list_directory(directory: Path) -> list[Path]:
    """Return what a directory holds, sorted; ``CheckpointError`` where it cannot be listed."""
    try:
        return sorted(directory.iterdir())
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be read, {explain_os_error(error)}") from None


def check_link(path: Path) -> None:
    """Raise ``CheckpointError`` for a symbolic link that leads nowhere, or in a circle."""
    if not path.is_symlink() or path.exists():
        return
    try:
        target = os.readlink(path)
    except OSError:
        target = "?"
    raise CheckpointError(f"{path}: is a link to {target}, which leads to no file; download the file again")
