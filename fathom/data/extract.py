"""How a file becomes documents: one small function per kind of file, and the table that names them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fathom.data.archive import read_members
from fathom.data.document import Document
from fathom.errors import SourceError
from fathom.spec.data import PackageSource

Extractor = Callable[[str], Iterable[str]]

MAX_CHAPTER_CHARS = 12_000
MIN_CHAPTER_CHARS = 1_500
GROUP_CHARS = 1_200

_GUTENBERG_START = re.compile(r"^\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG.*$", re.MULTILINE | re.IGNORECASE)
_GUTENBERG_END = re.compile(
    r"^(?:\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG|End of (?:the )?Project Gutenberg).*", re.MULTILINE | re.DOTALL
)
_HEADING = re.compile(
    r"\n\s*\n(?=[ \t]*(?:CHAPTER|ACT|SCENE|BOOK|PART|CANTO|LETTER|VOLUME|STAVE|INDUCTION|PROLOGUE|EPILOGUE)\b)"
    r"|\n\s*\n(?=[ \t]*(?:Chapter|Act|Scene|Book|Part|Canto|Letter) [0-9IVXLC]+\b)"
)
_TAGGED = re.compile(r"\s*([^\s/]+|/)/[A-Za-z]+\]?[A-Za-z]*")
_QUOTE = re.compile(r"》((?:第?[一二三四五六七八九十百千〇零]+[回卷折出章]|卷[一二三四五六七八九十百千]+)?)([^”“》]+)”")


def extract(source: PackageSource, archive: Path) -> Iterator[Document]:
    """Yield the documents of a source from its archive, in a fixed order.

    A file that is not UTF-8, or not in the format its extractor expects, raises ``SourceError``.
    """
    make = EXTRACTORS.get(source.extractor)
    if make is None:
        known = ", ".join(sorted(EXTRACTORS))
        raise SourceError(f"{source.name}: unknown extractor {source.extractor!r}; use one of {known}")
    for name, content in read_members(archive, source.files, source.exclude):
        try:
            for index, text in enumerate(make(content.decode("utf-8-sig"))):
                yield Document(text, source.name, f"{name}#{index}")
        except UnicodeDecodeError as error:
            raise SourceError(f"{source.name}: {name} is not UTF-8 ({error.reason}); exclude it") from None
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise SourceError(
                f"{source.name}: {name} is not what {source.extractor!r} reads ({reason}); choose another extractor"
            ) from None


def plain(text: str) -> Iterator[str]:
    """Split a book into chapters, joining small ones and cutting large ones at blank lines.

    Project Gutenberg's header and licence are left out.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    start = _GUTENBERG_START.search(text)
    end = _GUTENBERG_END.search(text, start.end() if start else 0)
    text = text[start.end() if start else 0 : end.start() if end else len(text)]
    pending = ""
    for section in _HEADING.split(text):
        pending = f"{pending}\n\n{section}" if pending else section
        if len(pending) > MAX_CHAPTER_CHARS:
            *whole, pending = cut(pending)
            yield from whole
        if len(pending) >= MIN_CHAPTER_CHARS:
            yield pending
            pending = ""
    if pending.strip():
        yield pending


def cut(text: str, limit: int = MAX_CHAPTER_CHARS) -> list[str]:
    """Cut a text into parts of at most ``limit`` characters, at blank lines, else lines, else spaces, else anywhere."""
    parts = []
    while len(text) > limit:
        places = (text.rfind(mark, limit // 2, limit) for mark in ("\n\n", "\n", " "))
        place = next((place for place in places if place >= 0), limit)
        parts.append(text[:place])
        text = text[place:].lstrip("\n")
    return [*parts, text]


def group(texts: Iterable[str], separator: str = "\n", limit: int = GROUP_CHARS) -> Iterator[str]:
    """Join consecutive short texts into documents of at least ``limit`` characters."""
    pending: list[str] = []
    size = 0
    for text in texts:
        pending.append(text)
        size += len(text)
        if size >= limit:
            yield separator.join(pending)
            pending, size = [], 0
    if pending:
        yield separator.join(pending)


def summaries(text: str) -> Iterator[str]:
    """Read a JSON object of articles with ``title`` and ``extract``; the title heads the article."""
    for article in json.loads(text).values():
        yield f"{article['title']}\n\n{article['extract']}"


def recipes(text: str) -> Iterator[str]:
    """Read a JSON object of recipes with ``title``, ``ingredients`` and ``steps``."""
    for recipe in json.loads(text).values():
        yield "\n".join(_recipe_lines(recipe))


def _recipe_lines(recipe: Mapping[str, Any]) -> Iterator[str]:
    yield str(recipe["title"])
    for field in ("category", "servings", "time"):
        if recipe.get(field):
            yield f"{field.capitalize()}: {recipe[field]}"
    yield "\nIngredients"
    yield from (f"- {item}" for item in recipe["ingredients"])
    yield "\nSteps"
    yield from (f"{number}. {step}" for number, step in enumerate(recipe["steps"], start=1))


def verses(text: str) -> Iterator[str]:
    """Read JSON lines of verses with ``book``, ``chapter`` and ``text``; one document per chapter."""
    heading, lines = "", list[str]()
    for line in filter(None, map(str.strip, text.split("\n"))):
        verse = json.loads(line)
        current = f"{verse['book']} {verse['chapter']}"
        if current != heading and lines:
            yield f"{heading}\n\n" + "\n".join(lines)
            lines = []
        heading = current
        lines.append(verse["text"])
    if lines:
        yield f"{heading}\n\n" + "\n".join(lines)


def idioms(text: str) -> Iterator[str]:
    """Read a CSV of Chinese idioms with explanation, source and example; one document per idiom.

    The file lost its opening quotation marks and abbreviates the idiom in examples; both are restored.
    """
    for row in csv.DictReader(io.StringIO(text)):
        word = row["word"]
        lines = [f"{word}（{row['pinyin']}）", f"释义：{_quoted(row['explanation'])}"]
        if row["derivation"] not in ("", "无"):
            lines.append(f"出处：{_quoted(row['derivation'])}")
        if row["example"] not in ("", "无"):
            example = row["example"].strip("”，").replace("～", word).replace("★", "——")
            lines.append(f"例句：{_quoted(example)}")
        yield "\n".join(lines)


def _quoted(text: str) -> str:
    text = _QUOTE.sub(r"》\1：“\2”", text.replace("◇", "。"))
    return text if text.count("“") == text.count("”") else text.replace("“", "").replace("”", "")


def reviews(text: str) -> Iterator[str]:
    """Read one review per line; repeated lines are dropped and neighbours joined into documents."""
    lines = dict.fromkeys(line.strip() for line in text.split("\n"))
    yield from group((line for line in lines if line), separator="\n\n")


def tagged(text: str) -> Iterator[str]:
    """Read word/tag text and drop the tags and, as Chinese has none, the spaces; neighbours form documents."""
    lines = ("".join(_TAGGED.findall(line)).replace("[", "") for line in text.split("\n"))
    yield from group(line for line in lines if line)


def whole(text: str) -> Iterator[str]:
    """Take the file as one document, source code for instance."""
    yield text


EXTRACTORS: Mapping[str, Extractor] = MappingProxyType(
    {
        "plain": plain,
        "summaries": summaries,
        "recipes": recipes,
        "verses": verses,
        "idioms": idioms,
        "reviews": reviews,
        "tagged": tagged,
        "python": whole,
    }
)
"""Extractors by the name that manifests use."""
