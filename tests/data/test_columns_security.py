"""Names and values of columns that no data set has, found by the fuzz target ``data_files``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fathom.data.problems.gold import gold_answer
from fathom.errors import DataError
from fathom.pipeline.data_inspection import inspect_data


def test_an_answer_beyond_any_float_is_kept() -> None:
    assert gold_answer(10**400, "answer").answer == str(10**400)
    assert gold_answer(2.0, "answer").answer == "2"


def test_columns_of_several_lines_are_named_on_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"a\nb": 1, "\x1b]0;x\x07": 2}))
    with pytest.raises(DataError, match="no known form in the columns") as caught:
        inspect_data(path)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
