"""The split that a file's path names, as data sets on the hub have it: ``data/test-00000-of-00001.parquet``."""

from __future__ import annotations

import re
from pathlib import PurePath

HELD_OUT_SPLITS = ("test", "validation", "valid", "val", "dev", "eval")
_SPLIT = re.compile(rf"(?:^|[-_./])(train|{'|'.join(HELD_OUT_SPLITS)})(?=[-_./]|$)")


def split_of(path: PurePath) -> str:
    """Return the split that a path names last, or an empty text."""
    return _named(path)[1]


def before_split(path: PurePath) -> str:
    """Return what stands before the name of the split; all of a path that names none."""
    return _named(path)[0]


def _named(path: PurePath) -> tuple[str, str]:
    text = path.as_posix().lower()
    found = list(_SPLIT.finditer(text))
    return (text[: found[-1].start(1)], found[-1][1]) if found else (text, "")
