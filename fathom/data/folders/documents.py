"""A user's own text: files and folders of prose, code and data sets, compressed or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fathom.data import left_out
from fathom.data.document import Document
from fathom.data.extract import cut, plain
from fathom.data.folders.record_texts import record_texts
from fathom.data.folders.scan import (
    CODE_SUFFIXES,
    KNOWN_SUFFIXES,
    FoundFile,
    is_readable,
    may_be_other_things,
    scan_folder,
)
from fathom.data.left_out import LeftOutReport
from fathom.data.records import holds_records
from fathom.data.records.compressed import UnusableFileError, inner_suffix
from fathom.data.records.text_stream import read_text
from fathom.errors import DataError, SpecError
from fathom.spec import check
from fathom.spec.data import FolderSource

_END_OF_TEXT = "<|endoftext|>"
"""Between documents of one text file, as TinyStories has it; within a text it would be learned letter by letter."""


def folder_sources(
    folders: Sequence[Path], text_column: str | None = None, *, where: str = "--text"
) -> tuple[FolderSource, ...]:
    """Make one source per folder or file, named after it; equal names are numbered. ``where`` locates errors."""
    sources: list[FolderSource] = []
    for folder in folders:
        if not folder.exists():
            raise SpecError(where, f"{folder} does not exist", "name a folder or file of text")
        base = check.plain_stem(folder.resolve().stem, "text")
        taken = {source.name.casefold() for source in sources}
        name, number = base, 2
        while name.casefold() in taken:
            name, number = f"{base}-{number}", number + 1
        sources.append(FolderSource(name=name, path=str(folder.resolve()), text_column=text_column))
    return tuple(sources)


@dataclass(slots=True)
class FolderReading:
    """The documents of a folder as an iterator; ``left_out`` fills as it runs with what is none, and why."""

    source: FolderSource
    left_out: LeftOutReport = field(default_factory=LeftOutReport)
    used: int = 0

    def __iter__(self) -> Iterator[Document]:
        """Yield documents file by file, in order of path.

        An unreadable, empty, binary or wrongly encoded file, and an unreadable record, are counted and named, so long
        as there is text besides. A file given by its own name that is of no use, a folder without any text, a
        symbolic link that leads back to where it lies, data without a column of text, and a file that unpacks to
        absurd sizes raise ``DataError``.
        """
        root = Path(self.source.path)
        for file in self._files(root):
            texts = 0
            try:
                for texts, text in enumerate(self._texts(file), start=1):
                    yield Document(text, self.source.name, f"{file.name}#{texts - 1}")
            except UnusableFileError as error:
                if root.is_file() or (error.reason == left_out.NO_COLUMN and not may_be_other_things(file.path)):
                    raise
                self.left_out.add(error.reason, str(error))
            self.used += texts > 0
        if not self.used:
            raise DataError(
                f"{root}: no usable text in {self.left_out.count} files{self._first()}; add UTF-8 text files"
            )

    def _files(self, root: Path) -> list[FoundFile]:
        if root.is_file():
            if not is_readable(root):
                raise DataError(f"{root}: unknown kind of file; use {KNOWN_SUFFIXES}")
            return [FoundFile(root, root.name)]
        if not root.is_dir():
            raise DataError(f"{root}: source {self.source.name!r} has no such file or folder; correct path")
        files = scan_folder(root, self.left_out)
        if not files:
            raise DataError(f"{root}: no file of text or data found{self._first()}; add {KNOWN_SUFFIXES}")
        return files

    def _first(self) -> str:
        """The most telling example of what was left out, in parentheses."""
        reasons = sorted(self.left_out.reasons, key=lambda reason: (reason != left_out.NO_COLUMN, reason in _BY_NAME))
        return f" ({self.left_out.reasons[reasons[0]].examples[0]})" if reasons else ""

    def _texts(self, file: FoundFile) -> Iterator[str]:
        if holds_records(file.path):
            yield from record_texts(file.path, self.source, self.left_out)
            return
        text, problem = read_text(file.path, encoding=self.source.encoding)
        if problem:
            self.left_out.add(left_out.DAMAGED, problem)
        match inner_suffix(file.path):
            case ".txt":
                for document in text.split(_END_OF_TEXT):
                    yield from plain(document)
            case suffix if suffix in CODE_SUFFIXES:
                yield text
            case _:
                yield from cut(text.replace("\r\n", "\n"))


_BY_NAME = (
    *(left_out.HIDDEN, left_out.PACKAGES, left_out.DESCRIPTIONS, left_out.OTHER_KINDS, left_out.ARCHIVES),
    *(left_out.BROKEN_LINKS, left_out.REPEATED),
)
