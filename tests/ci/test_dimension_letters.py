"""Every letter that a tensor's name ends in has one meaning: the table's in docs/architecture.md, or its file's own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUFFIX = re.compile(r"[a-z0-9]_(?P<letters>[A-Z0-9r]*[A-Z][A-Z0-9r]*)$")
NO_TENSORS = {"lora_A", "lora_B"}
"""Names of others: PEFT's."""


def table(page: str) -> dict[str, str]:
    """Return the dimensions of the table under Shapes by their letters."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([A-Za-z])` \| (.+) \|$", text, re.MULTILINE))


def letters_of(tree: ast.Module) -> set[str]:
    """Return the letters in suffixes of a file's names: variables, parameters, attributes and functions."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name) | ast.FunctionDef(name=name):
                names.add(name)
            case ast.keyword(arg=str(name)):
                names.add(name)
    found = (SUFFIX.search(name) for name in names - NO_TENSORS if not name.isupper())
    return {letter for match in found if match for letter in match["letters"] if not letter.isdigit()}


def own_letters(tree: ast.Module) -> set[str]:
    """Return the letters that a file's docstring explains: `X rows`, `X = P + U`, `X and Y rows`."""
    return set(re.findall(r"(?:^|[\s,(])([A-Z])(?= (?:=|and|is|[a-z0-9]))", ast.get_docstring(tree) or ""))


def defined_letters(tree: ast.Module) -> set[str]:
    """Return the letters that a file's docstring lists as dimensions: `X rows, Y columns`."""
    return set(re.findall(r"(?:^|, )([B-Z]) (?!and )[a-z]", ast.get_docstring(tree) or "", re.MULTILINE))


FILES = sorted(
    path
    for path in (ROOT / "fathom").rglob("*.py")
    if any(SUFFIX.search(word) for word in re.findall(r"\w+", path.read_text(encoding="utf-8")))
)


def test_both_languages_have_the_same_letters() -> None:
    letters = table("architecture.md")
    assert list(letters) == list(table("architecture.zh-CN.md"))
    assert len(set(letters.values())) == len(letters) >= 18


@pytest.mark.parametrize("package", sorted({path.relative_to(ROOT / "fathom").parts[0] for path in FILES}))
def test_every_letter_is_explained_once(package: str) -> None:
    common = set(table("architecture.md"))
    unexplained, redefined = {}, {}
    for path in FILES:
        if path.relative_to(ROOT / "fathom").parts[0] != package:
            continue
        tree, name = ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix()
        if missing := letters_of(tree) - common - own_letters(tree):
            unexplained[name] = missing
        if package != "study" and (again := defined_letters(tree) & common):
            redefined[name] = again
    assert (unexplained, redefined) == ({}, {})
