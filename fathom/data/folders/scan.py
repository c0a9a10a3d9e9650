"""Which files of a folder are text or data, symbolic links followed, and why the others are none."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fathom.data import left_out
from fathom.data.folders.split_names import HELD_OUT_SPLITS, before_split, split_of
from fathom.data.left_out import LeftOutReport
from fathom.data.records import holds_records
from fathom.data.records.compressed import inner_suffix
from fathom.errors import DataError, explain_os_error
from fathom.files import open_regular

PROSE_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc")
CODE_SUFFIXES = (
    *(".py", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cu", ".java", ".kt", ".scala", ".cs", ".go", ".rs"),
    *(".js", ".mjs", ".jsx", ".ts", ".tsx", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".swift", ".m", ".f90"),
    *(".sh", ".bash", ".sql", ".hs", ".ml", ".ex", ".exs", ".erl", ".clj", ".lisp", ".zig", ".dart"),
)
KNOWN_SUFFIXES = ".txt, .md, .rst, .py and other code, .jsonl, .json, .csv, .tsv or .parquet, or .gz, .zst, ... of them"
"""The most usual suffixes, for messages."""
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
_PACKAGE_FOLDERS = ("node_modules", "site-packages", "__pycache__")
_METADATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "croissant.json")
_DESCRIPTIONS = ("readme", "license", "licence", "notice", "citation", "datasheet", "dataset_card")
_CARD_FIELD = re.compile(rb"^(dataset_info|configs|license|language|size_categories|task_categories):", re.MULTILINE)
_TABLES_OR_JSON = (".json", ".csv", ".tsv")


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file to read: where it is, and its path below the folder with slashes."""

    path: Path
    name: str


def is_readable(path: Path) -> bool:
    """Whether a file's suffix is one of text, code or data, compressed or not."""
    return inner_suffix(path) in (*PROSE_SUFFIXES, *CODE_SUFFIXES) or holds_records(path)


def may_be_other_things(path: Path) -> bool:
    """Whether a file of this suffix in a folder of text need not be data: settings, a table."""
    return path.suffix.lower() in _TABLES_OR_JSON


def scan_folder(root: Path, report: LeftOutReport, *, splits: bool = False) -> list[FoundFile]:
    """Return the files of a folder that can be text, in order of path; ``report`` gets all others.

    Symbolic links are followed, and every real file is taken once. Hidden files and folders, installed packages and,
    beside data files, what describes them (README, LICENSE, dataset_infos.json, a loading script) are left out. So are
    data and plain text that are named as a held-out split, such as test, where others beside them are named train.

    ``splits`` keeps all splits.

    Raises:
        DataError: a symbolic link leads back to a folder that it lies in, or to itself.
    """
    walk = _Walk(report)
    walk.run(root)
    found = sorted(walk.files, key=lambda file: PurePosixPath(file.name).parts)
    cards = _Cards(root, found)
    training = {before_split(path) for path in map(PurePosixPath, _split_files(found)) if split_of(path) == "train"}
    kept = []
    for file in found:
        path = PurePosixPath(file.name)
        if cards.describes(file):
            report.add(left_out.DESCRIPTIONS, file.name)
        elif not splits and split_of(path) in HELD_OUT_SPLITS and before_split(path) in training and _has_splits(file):
            report.add(left_out.OTHER_SPLITS, file.name)
        else:
            kept.append(file)
    return kept


def _has_splits(file: FoundFile) -> bool:
    """Whether a file may be a split of a data set: not code or a page, which may be about tests."""
    return holds_records(file.path) or inner_suffix(file.path) == ".txt"


def _split_files(found: Iterable[FoundFile]) -> list[str]:
    return [file.name for file in found if _has_splits(file)]


@dataclass(slots=True)
class _Walk:
    report: LeftOutReport
    files: list[FoundFile] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    def run(self, root: Path) -> None:
        """Go through the folders below ``root``, each after its own files; both in order of name."""
        waiting: list[tuple[Path, str, tuple[str, ...]]] = [(root, "", ())]
        while waiting:
            folder, name, links = waiting.pop()
            real = os.path.realpath(folder)
            if real in self._seen:
                self.report.add(left_out.REPEATED, name)
                continue
            self._seen.add(real)
            folders = self._list(folder, f"{name}/" if name else "", real, links)
            waiting.extend(reversed(folders))

    def _list(
        self, folder: Path, prefix: str, real: str, links: tuple[str, ...]
    ) -> list[tuple[Path, str, tuple[str, ...]]]:
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            if not prefix:
                raise DataError(f"{folder}: cannot be read, {explain_os_error(error)}") from None
            self.report.add(left_out.UNREADABLE, f"{prefix} ({explain_os_error(error)})")
            return []
        folders = []
        for base in names:
            path, name = folder / base, prefix + base
            if base.startswith("."):
                self.report.add(left_out.HIDDEN, name)
            elif os.path.islink(path) and not _reachable(path):
                self.report.add(left_out.BROKEN_LINKS, name)
            elif not os.path.isdir(path):
                self._file(path, name)
            elif base in _PACKAGE_FOLDERS:
                self.report.add(left_out.PACKAGES, name)
            elif os.path.islink(path):
                _check_cycle(path, (*links, real))
                folders.append((path, name, (*links, real)))
            else:
                folders.append((path, name, links))
        return folders

    def _file(self, path: Path, name: str) -> None:
        real = os.path.realpath(path)
        if inner_suffix(path) in _ARCHIVES:
            self.report.add(left_out.ARCHIVES, name)
        elif not is_readable(path) or not os.path.isfile(path):
            self.report.add(left_out.OTHER_KINDS, name)
        elif real in self._seen:
            self.report.add(left_out.REPEATED, name)
        else:
            self._seen.add(real)
            self.files.append(FoundFile(path, name))


def _reachable(link: Path) -> bool:
    try:
        link.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataError(f"{link}: a symbolic link that leads to itself; remove it") from None
        return False
    return True


def _check_cycle(link: Path, folders: Iterable[str]) -> None:
    """Refuse a link to a folder that holds the link, itself or by a link followed before."""
    target = Path(os.path.realpath(link))
    if any(target == Path(folder) or target in Path(folder).parents for folder in folders):
        raise DataError(f"{link}: a symbolic link to {target}, which it lies in itself; remove the link")


class _Cards:
    """Knows which files describe data files rather than being text of their own.

    Beside files that may be other things a README is a card only where it has the header of one.
    """

    def __init__(self, root: Path, files: Iterable[FoundFile]) -> None:
        self._root = root
        self._data: set[PurePosixPath] = set()
        self._maybe_data: set[PurePosixPath] = set()
        for file in files:
            if holds_records(file.path) and file.path.name not in _METADATA:
                kept = self._maybe_data if may_be_other_things(file.path) else self._data
                kept.update(PurePosixPath(file.name).parents)

    def describes(self, file: FoundFile) -> bool:
        name = PurePosixPath(file.name)
        if name.name.lower() in _METADATA:
            return True
        if name.parent not in self._data | self._maybe_data:
            return False
        if name.name.lower().split(".")[0] in _DESCRIPTIONS and inner_suffix(file.path) in PROSE_SUFFIXES:
            return name.parent in self._data or _has_header(file.path)
        folder = name.parent.name or self._root.resolve().name
        return name.suffix.lower() == ".py" and name.stem == folder and name.parent in self._data


def _has_header(path: Path) -> bool:
    """Whether a Markdown file starts with the YAML header of a data set's card."""
    try:
        with open_regular(path) as file:
            head = file.read(65_536)
    except OSError:
        return False
    return head.startswith(b"---") and _CARD_FIELD.search(head) is not None
