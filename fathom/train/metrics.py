"""Metrics as JSON lines that survive crashes and resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fathom.errors import CheckpointError, ResourceError, explain_os_error, shortened
from fathom.files import make_folder, read_bytes, write_bytes

_CHANGES = "changes"
_LARGEST = 1 << 31
"""Bytes that the lines of a stage may have."""


class JsonLines:
    """Appends one JSON object a line; a line is there whole or not at all.

    Every line has a ``step``. Opening at step N drops what was written after N, so that a resumed run writes no step
    twice; a line cut by a crash goes too, and so do the changes that an earlier resume from step N wrote. Lines that do
    not fit on the disk are kept in memory and tried again with the next one.
    """

    def __init__(self, path: Path, *, after_step: int) -> None:
        self.path = path
        self._waiting = b""
        try:
            make_folder(path.parent)
            self._truncate(after_step)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            self._size = os.fstat(self._file).st_size
        except OSError as error:
            raise self._refused(error) from error

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line; numbers that are not finite become null."""
        line = json.dumps({"step": step} | _plain(values), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        self._waiting += line.encode() + b"\n"
        with suppress(OSError):
            self._flush()

    def write_changes(self, step: int, changes: Sequence[Mapping[str, Any]]) -> None:
        """Append one line that says which fields have other values after ``step``: ``field``, ``old`` and ``new``."""
        self.write(step, {_CHANGES: list(changes)})

    def sync(self) -> None:
        """Force all lines to disk.

        Raises:
            ResourceError: there is still no room.
        """
        try:
            self._flush()
            os.fsync(self._file)
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Write what waits, if there is room, and close the file."""
        with suppress(OSError):
            self._flush()
        os.close(self._file)

    def _flush(self) -> None:
        if not self._waiting:
            return
        left = memoryview(self._waiting)
        try:
            while left:  # a disk that fills takes a part first, and says why when given the rest
                left = left[os.write(self._file, left) :]
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(self._waiting)
        self._waiting = b""

    def _truncate(self, after_step: int) -> None:
        if not self.path.exists():
            return
        kept = [line for line in _raw_lines(self.path) if _belongs(line, after_step)]
        write_bytes(self.path, b"".join(kept))

    def _refused(self, error: OSError) -> ResourceError:
        return ResourceError(f"{self.path}: metrics not written, {explain_os_error(error)}")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read back what ``JsonLines.write`` wrote; a last line still being written is left out.

    Raises:
        CheckpointError: the file is damaged, or of something else.
    """
    return [line for line in _lines(path) if _CHANGES not in line]


def read_changes(path: Path) -> list[dict[str, Any]]:
    """Read back the changes of fields at resumes: ``step``, ``field``, ``old`` and ``new`` of each."""
    return [{"step": line["step"], **change} for line in _lines(path) for change in line.get(_CHANGES, ())]


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = _raw_lines(path) if path.exists() else []
    try:
        found = [json.loads(line) for line in lines if line.endswith(b"\n")]
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not all(isinstance(line, dict) for line in found):
        raise _damaged(path, "a line is no JSON object")
    return found


def _raw_lines(path: Path) -> list[bytes]:
    try:
        return read_bytes(path, _LARGEST).splitlines(keepends=True)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, why: object) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read ({shortened(str(why))}); begin again with --restart")


def _belongs(line: bytes, after_step: int) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        found = json.loads(line)
        return bool(found["step"] < after_step or (found["step"] == after_step and _CHANGES not in found))
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _plain(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    if isinstance(values, float):
        finite = values - values == 0
        return values if finite else None
    return values
