"""Files and folders that are published atomically, JSON text, and SHA-256 digests.

A file or folder is written under a hidden temporary name beside its destination (``.NAME.RANDOM.partial``), forced to
disk (fsync), and renamed: a reader sees what was there before, or all of the new, and a process that is killed leaves
at most the temporary. It is locked (flock) while its process lives, so the next publication of the same name, or
``remove_leftovers``, can tell it from one that is being written and removes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fathom.errors import DataError, ResourceError, explain_os_error

_POINTER = b"version https://git-lfs"

if sys.platform != "win32":
    import fcntl

DESCRIPTION_BYTES = 16 * 2**20
"""What a file that describes a model may have: JSON that is read whole, and takes several times its size."""
PARTIAL = ".partial"
"""Suffix of everything that is being written."""
REPLACED = ".replaced"
"""Suffix of a folder between the two renames that replace it; put back if the process dies there."""

_NAMES = "names"
"""Lists the names of several files that are published at once, the first one's last; holds while they are renamed."""
_BLOCK_BYTES = 1 << 18
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_ABANDONED_SECONDS = 86_400
"""Age at which a temporary counts as abandoned where the file system has no locks."""


@contextmanager
def publish_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` that replaces it when the block succeeds; nothing is left if it fails.

    Raises:
        ResourceError: the file system refuses; what was at ``path`` is intact.
    """
    with _explained(path), _temporary(path, _make_file) as partial:
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)


@contextmanager
def publish_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield temporary files that take the names of ``paths``, of one folder, when the block succeeds: all, or none.

    They are renamed with the first one last. What a process leaves that is killed between two renames is removed by
    ``remove_leftovers``, as is what it leaves while it writes.

    Raises:
        ResourceError: the file system refuses; none of the names appears.
    """
    first = paths[0]
    with _explained(first), _temporary(first, Path.mkdir) as folder:
        partials = [folder / path.name for path in paths]
        for partial in partials:
            partial.touch()
        yield partials
        for partial in partials:
            sync(partial)
        (folder / _NAMES).write_text("\n".join(path.name for path in paths), encoding="utf-8")
        sync(folder / _NAMES)
        try:
            for partial, path in zip(reversed(partials), reversed(paths), strict=True):
                partial.replace(path)
        except BaseException:
            _take_back(folder)
            raise
        sync(first.parent)


@contextmanager
def publish_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its name when the block succeeds; nothing is left otherwise.

    Raises:
        DataError: ``path`` exists, is not an empty folder, and is not to be replaced.
        ResourceError: the file system refuses; what was at ``path`` is intact.
    """
    if not replace and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path}: exists and is not empty; delete it, or choose another folder")
    with _explained(path), _temporary(path, Path.mkdir) as partial:
        yield partial
        for found in partial.rglob("*"):
            if not found.is_symlink():
                sync(found)
        sync(partial)
        _rename_directory(partial, path, replace)
        sync(path.parent)
        _remove(_replaced(path))


def write_bytes(path: Path, content: bytes) -> None:
    """Publish a file of ``content``; ``ResourceError`` where the file system refuses."""
    with publish_file(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Publish a file of UTF-8 text; ``ResourceError`` where the file system refuses."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Publish a value as JSON; ``ResourceError`` where the file system refuses."""
    write_text(path, json_text(value))


def json_text(value: Any, *, indent: int = 1, allow_nan: bool = True) -> str:
    """Return a value as indented JSON with a final newline.

    Raises:
        TypeError: it is not made of plain values.
        ValueError: it holds NaN or infinity, which ``allow_nan`` writes as Python reads them back.
    """
    return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=allow_nan) + "\n"


def make_folder(path: Path) -> None:
    """Make a folder and its parents where they are missing; ``OSError`` where the file system refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # what mkdir says of a file where a folder should be
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None


def remove_directory(path: Path) -> None:
    """Remove a folder so that no reader ever sees it half removed; ``OSError`` where it cannot be renamed."""
    partial = _partial(path)
    path.rename(partial)
    _remove(partial)


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder and those below it."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left in ``folder``, of one published name or of all.

    A folder whose replacement was cut between its two renames is put back.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if not is_leftover(path) or (name is not None and _published_name(path) != name):
            continue
        if path.name.endswith(REPLACED):
            _put_back(path)
        else:
            _remove_abandoned(path)


def is_leftover(path: Path) -> bool:
    """Whether a name is that of a file or folder being written or replaced."""
    return path.name.startswith(".") and path.name.endswith((PARTIAL, REPLACED))


def sync(path: Path) -> None:
    """Force a file's bytes or a folder's entries to disk, where the system can."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path, stop: Callable[[], bool] = lambda: False) -> str:
    """Return a file's SHA-256 as hexadecimal digits; unfinished where ``stop`` says so."""
    found, block = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while not stop() and (count := file.readinto(block)):
            found.update(block[:count])
    return found.hexdigest()


def sha256(content: bytes | memoryview | str) -> str:
    """Return the SHA-256 of bytes, or of text as UTF-8, as hexadecimal digits."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def read_text(path: Path, most: int = DESCRIPTION_BYTES) -> str:
    """Return a file's text, UTF-8, with newlines as ``Path.read_text`` gives them; errors as of ``read_bytes``."""
    return io.TextIOWrapper(io.BytesIO(read_bytes(path, most)), encoding="utf-8").read()


def read_bytes(path: Path, most: int) -> bytes:
    """Return what a file holds.

    Raises:
        ValueError: it has more than ``most`` bytes.
        OSError: it cannot be read, or is no regular file.
    """
    data, left = b"", most + 1
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        at_once = max(_BLOCK_BYTES, size + 1)  # what is asked for is allocated at once
        while size <= most and (block := file.read(min(left, at_once))):
            data, left = data + block if data else block, left - len(block)
    if max(size, len(data)) > most:
        raise ValueError(f"it has more than {most} bytes")
    return data


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; ``OSError`` for pipes, which would wait, and devices, which may have no end."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | _NONBLOCK)

    file = open(path, "rb", opener=opener)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return file


def pointer_remedy(beginning: bytes) -> str | None:
    """Return what to say of a file that Git left as a pointer of Git LFS; None for any other beginning."""
    if beginning.startswith(_POINTER):
        return "is a pointer of Git LFS and not the file itself; run 'git lfs pull' in its repository"
    return None


def fingerprint(value: Any) -> str:
    """Return sixteen hexadecimal digits that are equal for equal JSON values, whatever the order of keys."""
    return sha256(json.dumps(value, sort_keys=True))[:16]


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(f"{path}: not written, {explain_os_error(error)}") from error


@contextmanager
def _temporary(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Make a locked temporary beside ``path``; whatever still has its name at the end is removed."""
    make_folder(path.parent)
    remove_leftovers(path.parent, path.name)
    partial, lock = _make_locked(path, make)
    try:
        yield partial
    finally:
        _remove(partial)
        if lock is not None:
            os.close(lock)


def _make_locked(path: Path, make: Callable[[Path], None]) -> tuple[Path, int | None]:
    while True:
        partial = _partial(path)
        make(partial)
        lock = _lock(partial)
        if partial.exists():
            return partial, lock
        if lock is not None:  # another process removed it between the two lines
            os.close(lock)


def _make_file(path: Path) -> None:
    path.touch(exist_ok=False)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")


def _replaced(path: Path) -> Path:
    return path.with_name(f".{path.name}{REPLACED}")


def _published_name(leftover: Path) -> str:
    """Return the name that a temporary was to have, or a replaced folder had."""
    name = leftover.name.removeprefix(".")
    return name.removesuffix(REPLACED) if name.endswith(REPLACED) else name.removesuffix(PARTIAL).rpartition(".")[0]


def _rename_directory(partial: Path, path: Path, replace: bool) -> None:
    if path.exists() and not replace:
        path.rmdir()  # empty; not every system renames over it
    if not path.exists():
        partial.rename(path)
        return
    before = _replaced(path)
    _remove(before)
    path.rename(before)
    try:
        partial.rename(path)
    except OSError:
        before.rename(path)
        raise


def _put_back(replaced: Path) -> None:
    path = replaced.with_name(_published_name(replaced))
    if path.exists():
        _remove(replaced)
    else:
        replaced.rename(path)


def _remove_abandoned(path: Path) -> None:
    """Remove a temporary unless the process that writes it lives."""
    with contextlib.suppress(FileNotFoundError):
        try:
            lock = _lock(path, wait=False)
        except BlockingIOError:
            return
        if lock is None and time.time() - path.stat().st_mtime < _ABANDONED_SECONDS:
            return
        try:
            _take_back(path)
            _remove(path)
        finally:
            if lock is not None:
                os.close(lock)


def _take_back(folder: Path) -> None:
    """Remove those of several files that were renamed already, where the first was not."""
    try:
        first, *others = read_text(folder / _NAMES).split("\n")
    except (OSError, ValueError):
        return
    for name in others if (folder / first).exists() else ():
        if Path(name).name == name and not (folder / name).exists():
            (folder.parent / name).unlink(missing_ok=True)


def _lock(path: Path, *, wait: bool = True) -> int | None:
    """Lock a file or folder and return the descriptor that holds the lock; None where there are no locks.

    Raises:
        BlockingIOError: another process holds it, unless ``wait``.
        FileNotFoundError: there is no such file, unless ``wait``.
    """
    if sys.platform == "win32":
        return None
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDONLY | _NONBLOCK)
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        if not wait and isinstance(error, BlockingIOError | FileNotFoundError):
            raise
        return None
    return descriptor


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
