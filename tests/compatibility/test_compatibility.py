"""Every case of the compatibility page comes out as promised, and the page says what it came to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compatibility import areas
from tests.compatibility.case import Area, Case
from tests.compatibility.page import CHINESE, ENGLISH, ROOT, render

AREAS = areas()
CASES = [(area, case) for area in AREAS for case in area.cases]


@pytest.mark.parametrize(("area", "case"), CASES, ids=[f"{area.title}: {case.what}" for area, case in CASES])
def test_a_case_comes_out_as_promised_and_as_written(area: Area, case: Case, tmp_path: Path) -> None:
    outcome = case.run(tmp_path)
    assert outcome.status == case.expected, outcome.detail
    assert not outcome.detail or str(tmp_path) not in outcome.detail
    only = Area(title=area.title, title_zh=area.title_zh, cases=(case,))
    for language in (ENGLISH, CHINESE):
        page = (ROOT / language.file).read_text(encoding="utf-8")
        row = render(language, [only], [[outcome]]).splitlines()[-1]
        assert row in page.splitlines(), f"{language.file} is stale: python -m tests.compatibility"


def test_phrases_are_unique_and_in_both_languages() -> None:
    for area in AREAS:
        phrases = [case.what for case in area.cases]
        assert len(set(phrases)) == len(phrases)
        assert all(any("\u4e00" <= character <= "\u9fff" for character in case.zh) for case in area.cases)
