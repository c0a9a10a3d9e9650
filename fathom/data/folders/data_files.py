"""The data files that a path of a recipe names: one file, the files of a folder, or those of a pattern."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fathom.data.folders.scan import scan_folder
from fathom.data.folders.split_names import HELD_OUT_SPLITS, split_of
from fathom.data.left_out import LeftOutReport
from fathom.data.records import RECORD_SUFFIXES, holds_records
from fathom.errors import DataError

_SETTINGS = frozenset({"config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"})


def data_files(path: Path) -> Sequence[Path]:
    """Return the files of a path in order: itself, those below a folder, or those that a pattern with ``*`` matches.

    Symbolic links of a folder are followed; descriptions of the data set and hidden files are no data.

    Raises:
        DataError: there are none, a link leads back to its folder, or there are several splits, such as train and test;
            a pattern may match files of train and others that name no split.
    """
    if "*" in str(path) and not path.exists():
        root = Path(path.anchor or ".")
        found = sorted(file for file in root.glob(str(path.relative_to(path.anchor))) if file.is_file())
        if not found:
            raise DataError(f"{path}: matches no file; correct the pattern")
        if any(split_of(file.relative_to(root)) in HELD_OUT_SPLITS for file in found):
            _check_one_split(path, found, root)
        return found
    if not path.is_dir():
        return [path]
    found = [file.path for file in scan_folder(path, LeftOutReport(), splits=True) if is_data_file(file.path)]
    if not found:
        raise DataError(f"{path}: no data file in this folder; add one of {', '.join(RECORD_SUFFIXES)}")
    _check_one_split(path, found, path)
    return found


def named_split(path: Path) -> str:
    """Return the split that the files of a path name, or the folder itself; an empty text where none does."""
    first = data_files(path)[0]
    return split_of(Path(path.name) / first.relative_to(path)) if path.is_dir() else split_of(Path(first.name))


def _check_one_split(path: Path, found: Sequence[Path], base: Path) -> None:
    """Refuse files of several splits: what is learned of and what is held out."""
    by_split: dict[str, Path] = {}
    for file in found:
        by_split.setdefault(split_of(file.relative_to(base)), file)
    if len(by_split) > 1:
        example = next((file for name, file in by_split.items() if name == "train"), found[0])
        names = ", ".join(name or "no split" for name in by_split)
        raise DataError(
            f"{path}: holds files of several splits ({names}); name one, e.g. {example}, or a pattern with *"
        )


def is_data_file(path: Path) -> bool:
    """Whether a file holds rows, as its name says."""
    return holds_records(path) and path.name not in _SETTINGS and path.is_file()
