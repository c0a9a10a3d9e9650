"""Rows of a stranger's data file that would take long to recognise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fathom.data.forms import Column


class _Counted(dict[str, Any]):
    """A row that counts how often its names are walked through."""

    walks = 0

    def __iter__(self) -> Iterator[str]:
        self.walks += 1
        return super().__iter__()


def test_security_names_of_an_absurdly_wide_row_are_not_searched() -> None:
    wide = _Counted({f"c{index}": 1 for index in range(5000)}, Question="a")
    assert Column("question", "", ("q",)).find(wide) is None
    assert wide.walks == 0
    wide["q"] = "b"
    assert Column("question", "", ("q",)).find(wide) == "q"
    few = _Counted({f"c{index}": 1 for index in range(5)}, Question="a")
    assert Column("question", "", ("q",)).find(few) == "Question"
    assert few.walks == 1
