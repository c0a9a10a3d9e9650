"""Every field has its meaning in Chinese, and the reference pages are what the specs say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from fathom.spec.data import Manifest
from fathom.spec.field_docs import all_specs, field_docs
from fathom.spec.field_translations import field_doc_in, translated_meaning, translated_summary, translations
from fathom.spec.recipe import Recipe

ROOT = Path(__file__).parents[2]
SPECS = all_specs(Recipe, Manifest)
LANGUAGE = "zh_CN"


def test_no_field_lacks_its_translation() -> None:
    fields = [(spec, doc) for spec in SPECS for doc in field_docs(spec).values()]
    assert [f"{s.__name__}.{d.name}" for s, d in fields if translated_meaning(s, d.name, LANGUAGE) is None] == []
    assert [spec.__name__ for spec in SPECS if translated_summary(spec, LANGUAGE) is None] == []
    units = translations(LANGUAGE)["units"]
    assert sorted({doc.unit for _, doc in fields if doc.unit} - set(units)) == []


def test_types_are_described_in_chinese_but_for_values() -> None:
    for spec in SPECS:
        for doc in field_docs(spec).values():
            words = re.sub(r'"[^"]*"', "", field_doc_in(doc, LANGUAGE).type)
            assert re.findall("[a-z]+", words) in ([], ["true", "false"], ["kind"]), (spec.__name__, doc.name, words)


def test_no_translation_is_of_a_field_that_is_gone() -> None:
    named = {
        each.__name__: set(field_docs(each)) for spec in SPECS for each in spec.__mro__ if each in _with_fields(spec)
    }
    for name, table in translations(LANGUAGE).items():
        if name not in ("units", "types"):
            assert set(table) - {"summary"} <= named[name], name


def _with_fields(spec: type) -> list[type]:
    return [each for each in spec.__mro__ if hasattr(each, "__dataclass_fields__")]


def test_translations_name_the_same_values_as_the_english_text() -> None:
    """Numbers, field names in code and choices are the same in both."""
    for spec in SPECS:
        for doc in field_docs(spec).values():
            chinese = translated_meaning(spec, doc.name, LANGUAGE) or ""
            assert re.search("[\u4e00-\u9fff]", chinese), (spec, doc.name)
            for code in re.findall(r"``(.+?)``", doc.meaning):
                assert code in chinese, (spec.__name__, doc.name, code)
            if doc.type.startswith("one of") and ":" in doc.meaning:
                for choice in doc.choices:
                    assert (choice in doc.meaning) <= (choice in chinese), (spec.__name__, doc.name, choice)


@pytest.mark.parametrize("name", ["recipes.md", "recipes.zh-CN.md"])
def test_the_reference_pages_are_what_the_specs_say(name: str) -> None:
    """To make them anew: python docs/recipe_reference.py."""
    reference = runpy.run_path(str(ROOT / "docs" / "recipe_reference.py"))
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == reference["page"](reference["PAGES"][name])


def test_both_pages_have_the_same_tables() -> None:
    def rows(name: str) -> list[str]:
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        return re.findall(r"^\| (`[a-z_0-9]+`) ", text, re.MULTILINE)

    assert rows("recipes.md") == rows("recipes.zh-CN.md")
    assert len(rows("recipes.md")) > 300
