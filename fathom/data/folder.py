"""A user's own text: files and folders of .txt, .md, .py and .jsonl."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fathom.data.document import Document
from fathom.data.extract import cut, plain
from fathom.errors import DataError, SpecError, explain_os_error
from fathom.spec.data import FolderSource

SUFFIXES = (".txt", ".md", ".py", ".jsonl")
_FIELDS = ("text", "content")


def folder_sources(folders: Sequence[Path]) -> tuple[FolderSource, ...]:
    """Make one source per folder or file, named after it; equal names are numbered."""
    sources: list[FolderSource] = []
    for folder in folders:
        if not folder.exists():
            raise SpecError("--text", f"{folder} does not exist", "name a folder or file of text")
        base = re.sub(r"[^\w-]+", "-", folder.resolve().stem).strip("-") or "text"
        taken = {source.name for source in sources}
        name, number = base, 2
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        sources.append(FolderSource(name=name, path=str(folder.resolve())))
    return tuple(sources)


@dataclass(slots=True)
class FolderReading:
    """The documents of a folder as an iterator; ``skipped`` fills with one line per unusable file as it runs."""

    source: FolderSource
    skipped: list[str] = field(default_factory=list)
    used: int = 0

    def __iter__(self) -> Iterator[Document]:
        """Yield documents file by file, in order of path.

        An unreadable, empty, binary or wrongly encoded file is skipped and noted, so long as another file is of
        use. A single file, a folder without any usable text, and a bad line of .jsonl raise ``DataError``.
        """
        root = Path(self.source.path)
        for file in _files(self.source, root):
            try:
                text = _read(file)
            except DataError as error:
                if root.is_file():
                    raise
                self.skipped.append(str(error))
                continue
            self.used += 1
            name = file.name if file == root else str(file.relative_to(root))
            for index, part in enumerate(_documents(file, text)):
                yield Document(part, self.source.name, f"{name}#{index}")
        if not self.used:
            first = f" ({self.skipped[0]})" if self.skipped else ""
            raise DataError(f"{root}: no usable text in {len(self.skipped)} files{first}; add UTF-8 text files")


def _files(source: FolderSource, root: Path) -> list[Path]:
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise DataError(f"{root}: unknown kind of file; use {', '.join(SUFFIXES)}")
        return [root]
    if not root.is_dir():
        raise DataError(f"{root}: source {source.name!r} has no such file or folder; correct path")
    inside = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    files = sorted(path for path in inside if not any(p.startswith(".") for p in path.relative_to(root).parts))
    if not files:
        raise DataError(f"{root}: no {', '.join(SUFFIXES)} file found; add some or correct path")
    return files


def _read(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read, {explain_os_error(error)}") from None
    if not content.strip():
        raise DataError(f"{file}: empty; remove it or add text")
    if b"\0" in content[:65_536]:
        raise DataError(f"{file}: holds binary data; remove it or save it as UTF-8 text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


def _documents(file: Path, text: str) -> Iterator[str]:
    match file.suffix.lower():
        case ".jsonl":
            yield from _json_lines(file, text)
        case ".txt":
            yield from plain(text)
        case ".md":
            yield from cut(text.replace("\r\n", "\n"))
        case _:
            yield text


def _json_lines(file: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}: line {number} is not JSON ({error}); fix or remove it") from None
        value = next((row[name] for name in _FIELDS if name in row), None) if isinstance(row, dict) else None
        if not isinstance(value, str):
            raise DataError(f"{file}: line {number} has no text in 'text' or 'content'; add one or remove the line")
        yield value
