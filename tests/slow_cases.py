"""Cases of a test of which the fast suite runs some and ``make test-all`` all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest


def fast(cases: Sequence[Any], chosen: Collection[Any], ids: Sequence[str] | None = None) -> list[Any]:
    """Return the cases as parameters, those that are not ``chosen``, by value or by id, marked slow.

    A tuple has a value for each argument.
    """
    names = list(map(_name, cases)) if ids is None else list(ids)
    found = [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            id=name,
            marks=() if case in chosen or name in chosen else pytest.mark.slow,
        )
        for case, name in zip(cases, names, strict=True)
    ]
    assert any(not param.marks for param in found)
    return found


def _name(case: Any) -> str:
    return "-".join(map(str, case)) if isinstance(case, tuple) else str(case)
