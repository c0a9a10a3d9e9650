"""A journal of finished work: lines of JSON beside a file to come, kept when the process is killed.

While ``answers.jsonl`` is being made, ``answers.jsonl.journal`` has what the work is, on its first line, and every
record that is done. At the end the file is published whole, and the journal removed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from fathom.errors import DataError, ResourceError, explain_os_error
from fathom.files import make_folder, publish_file

SUFFIX = ".journal"


class Journal:
    """The records that are done, of this run and those before it; made by ``open_journal``."""

    def __init__(self, out: Path, records: list[dict[str, Any]], file: IO[bytes]) -> None:
        self.out = out
        self.records = records
        self._file = file

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record; it is there after a kill."""
        self.records.append(record)
        self._file.write(_line(record))
        self._file.flush()

    def publish(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the file as lines of JSON, atomically, and remove the journal."""
        with publish_file(self.out) as partial, partial.open("wb") as file:
            file.writelines(_line(row) for row in rows)
        self.remove()

    def remove(self) -> None:
        """Remove the journal."""
        self._file.close()
        journal_path(self.out).unlink(missing_ok=True)


def journal_path(out: Path) -> Path:
    """Return where the journal of a file lies."""
    return out.with_name(out.name + SUFFIX)


def check_absent(out: Path, option: str = "--out") -> None:
    """Raise ``ResourceError`` if a file exists, before any work is done."""
    if out.exists():
        raise ResourceError(f"{out}: already exists; give another {option} or remove it first")


@contextmanager
def open_journal(out: Path, work: Mapping[str, Any]) -> Iterator[Journal]:
    """Open the journal of a file, or begin one; ``work`` is what must be the same for its records to count.

    Where nothing was done, none is left.

    Raises:
        DataError: a journal is there, and of other work.
        ResourceError: the file exists, another process writes it, or the file system refuses.
    """
    check_absent(out)
    path, lock = journal_path(out), FileLock(f"{journal_path(out)}.lock", timeout=0)
    try:
        make_folder(out.parent)
        with lock:
            file = path.open("a+b")
            with file:
                journal = Journal(out, _kept(path, file, dict(work)), file)
                try:
                    yield journal
                finally:
                    if not journal.records:
                        journal.remove()
                    if not path.exists():
                        Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout:
        raise ResourceError(f"{out}: another process is writing it; wait for it, or give another --out") from None
    except OSError as error:
        raise ResourceError(f"{out}: not written, {explain_os_error(error)}") from error


def _kept(path: Path, file: IO[bytes], work: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of a journal, without a last line that a kill cut short; begin one where there is none."""
    file.seek(0)
    *lines, cut = file.read().split(b"\n")
    if cut:
        file.truncate(sum(len(line) + 1 for line in lines))
    if not lines:
        file.write(_line(work))
        file.flush()
        return []
    try:
        head, *records = [json.loads(line) for line in lines]
    except ValueError:
        head, records = {}, []
    if head != work:
        known = head if isinstance(head, dict) else {}
        other = next((name for name in work if known.get(name) != work[name]), "form")
        raise DataError(f"{path}: was begun with other {other}; give the same, or another --out, or remove the journal")
    return records


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
