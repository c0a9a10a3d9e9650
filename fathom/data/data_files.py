"""The data files that a path of a recipe names: one file, the files of a folder, or those of a pattern."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fathom.data.folder_scan import scan_folder
from fathom.data.left_out import LeftOutReport
from fathom.data.records import RECORD_SUFFIXES, holds_records
from fathom.errors import DataError

_SPLIT = re.compile(r"(?:^|[-_./])(train|test|validation|valid|val|dev|eval)(?=[-_./]|$)")
_SETTINGS = frozenset({"config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"})


def data_files(path: Path) -> Sequence[Path]:
    """Return the files of a path in order: itself, those below a folder, or those that a pattern with ``*`` matches.

    Symbolic links of a folder are followed; descriptions of the data set and hidden files are no data.

    Raises:
        DataError: there are none, a link leads back to its folder, or there are several splits, such as train and test.
    """
    if "*" in str(path) and not path.exists():
        root = Path(path.anchor or ".")
        found = sorted(file for file in root.glob(str(path.relative_to(path.anchor))) if file.is_file())
        if not found:
            raise DataError(f"{path}: matches no file; correct the pattern")
        return found
    if not path.is_dir():
        return [path]
    found = [file.path for file in scan_folder(path, LeftOutReport()) if is_data_file(file.path)]
    if not found:
        raise DataError(f"{path}: no data file in this folder; add one of {', '.join(RECORD_SUFFIXES)}")
    by_split: dict[str, Path] = {}
    for file in found:
        by_split.setdefault(split_of(file.relative_to(path)), file)
    if len(by_split) > 1:
        example = next((file for name, file in by_split.items() if name == "train"), found[0])
        names = ", ".join(name or "no split" for name in by_split)
        raise DataError(
            f"{path}: holds files of several splits ({names}); name one, e.g. {example}, or a pattern with *"
        )
    return found


def is_data_file(path: Path) -> bool:
    """Whether a file holds rows, as its name says."""
    return holds_records(path) and path.name not in _SETTINGS and path.is_file()


def split_of(path: Path) -> str:
    """Return the split that a file's path names, or an empty text."""
    found = _SPLIT.findall(path.as_posix().lower())
    return found[-1] if found else ""
