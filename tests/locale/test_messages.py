"""Every text that ``tr`` translates has a translation in each catalogue, with its placeholders; there is no other."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any

import jinja2
import pytest
import typer

from fathom.cli.main import make_app
from fathom.locale import ENGLISH, LANGUAGES, catalogue, language_of, speak, tr

PACKAGE = Path(str(resources.files("fathom")))
TRANSLATED = [language for language in LANGUAGES if language != ENGLISH]
TRANSLATORS = ("tr", "marked")
NOUNS = {
    "update": (2, ("unit", "phase")),
    "lines": (0, ()),
    "log_report": (3, ()),
    "EpochData": (99, ("unit",)),
    "Finding": (0, ()),
    "cache_finding": (0, ()),
    "disk_finding": (0, ()),
}
"""Functions given a noun that is translated where it is shown: its place (the first of two for findings); keywords."""
Template = tuple[str, frozenset[str] | None]
"""A template, and the names of the values that its call gives; None for one that is translated elsewhere."""


def templates() -> Iterator[Template]:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if not any(f"{name}(" in text for name in (*TRANSLATORS, *NOUNS)):
            continue
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield from _templates_of(node, tree, path)
    for path in PACKAGE.rglob("*.jinja"):
        for call in jinja2.Environment().parse(path.read_text(encoding="utf-8")).find_all(jinja2.nodes.Call):
            first = call.args[0] if call.args else None
            if (
                isinstance(call.node, jinja2.nodes.Name)
                and call.node.name == "tr"
                and isinstance(first, jinja2.nodes.Const)
            ):
                yield first.value, frozenset(each.key for each in call.kwargs)
    for text in _help(typer.main.get_command(make_app())):
        yield text, None


def _names(given: ast.keyword, tree: ast.Module) -> Iterator[str]:
    """Yield the names that an argument gives: its own, or the keys of the dictionary that ``**`` spreads."""
    if given.arg is not None:
        yield given.arg
        return
    assert isinstance(given.value, ast.Name)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == given.value.id
        ):
            keys = node.value.keys if isinstance(node.value, ast.Dict) else []
            if isinstance(node.value, ast.DictComp):
                keys = next(iter(node.value.generators)).iter.elts
            yield from (str(key.value) for key in keys)


def _templates_of(call: ast.Call, tree: ast.Module, path: Path) -> Iterator[Template]:
    if isinstance(call.func, ast.Name) and call.func.id in TRANSLATORS:
        first = call.args[0]
        assert not isinstance(first, ast.JoinedStr | ast.BinOp), f"{path}:{call.lineno}: not a plain literal"
        if isinstance(first, ast.Constant):
            names = frozenset(name for each in call.keywords for name in _names(each, tree))
            yield str(first.value), names if call.func.id == "tr" else None
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    place, keywords = NOUNS.get(name, (len(call.args), ()))
    count = 2 if name == "Finding" else 1
    for words in (*call.args[place : place + count], *(each.value for each in call.keywords if each.arg in keywords)):
        found = (each.value for each in ast.walk(words) if isinstance(each, ast.Constant))
        yield from ((each, None) for each in found if isinstance(each, str) and each.strip())


def _help(command: Any) -> Iterator[str]:
    yield from (each.help for each in (command, *command.params) if getattr(each, "help", None))
    for each in getattr(command, "commands", {}).values():
        yield from _help(each)


@pytest.fixture(scope="module")
def found() -> list[Template]:
    return list(templates())


def placeholders(template: str) -> frozenset[str]:
    return frozenset(name for _, name, _, _ in Formatter().parse(template) if name)


@pytest.mark.parametrize("language", TRANSLATED)
def test_every_text_has_a_translation_and_every_translation_a_text(language: str, found: list[Template]) -> None:
    known, used = set(catalogue(language).messages), {template for template, _ in found}
    assert sorted(used - known) == []
    assert sorted(known - used) == []


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_text_stands_in_one_table_of_a_catalogue(language: str) -> None:
    tables = tomllib.loads((PACKAGE / "locale" / language / "messages.toml").read_text(encoding="utf-8"))
    assert sum(map(len, tables.values())) == len(catalogue(language).messages)


@pytest.mark.parametrize("language", TRANSLATED)
def test_translations_have_the_placeholders_of_their_text(language: str, found: list[Template]) -> None:
    given = {template: names for template, names in found if names}
    for template, text in catalogue(language).messages.items():
        if template in given:
            assert placeholders(template) == placeholders(text), template


def test_calls_give_the_values_that_their_text_names(found: list[Template]) -> None:
    wrong = [template for template, names in found if names and names != placeholders(template)]
    assert wrong == []


@pytest.mark.parametrize("language", TRANSLATED)
def test_translations_hold_no_space_at_their_ends_nor_between_chinese_characters(language: str) -> None:
    for template, text in catalogue(language).messages.items():
        assert not re.search(r"[\u4e00-\u9fff] +[\u4e00-\u9fff]", text), text
        assert text.strip() == text or template.strip() != template, text


def test_simplified_chinese_is_written_by_gbk() -> None:
    "".join(catalogue("zh_CN").messages.values()).encode("gbk")


def test_english_is_the_default_and_values_stand_in_texts_of_every_language() -> None:
    assert tr("error: {message}", message="{x}") == "error: {x}"
    speak("zh_CN")
    try:
        assert tr("error: {message}", message="{x}") == "错误：{x}"
        assert tr("no such text {x}", x=1) == "no such text 1"
    finally:
        speak(ENGLISH)


@pytest.mark.parametrize(
    ("locale", "language"),
    [
        ("C", "en"),
        ("C.UTF-8", "en"),
        ("POSIX", "en"),
        ("en_GB.UTF-8", "en"),
        ("zh_CN.UTF-8", "zh_CN"),
        ("zh_CN.gb18030@pinyin", "zh_CN"),
        ("zh-Hans-CN", "zh_CN"),
        ("zh", "zh_CN"),
        ("zh_SG", "zh_CN"),
        ("zh_TW.UTF-8", None),
        ("zh-Hant", None),
        ("de_DE", None),
    ],
)
def test_locales_ask_for_languages(locale: str, language: str | None) -> None:
    assert language_of(locale) == language
