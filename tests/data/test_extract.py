from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fathom.data import extract as extractors
from fathom.data.extract import EXTRACTORS, extract
from fathom.errors import SourceError


def test_a_book_is_split_at_chapters_without_header_and_licence() -> None:
    chapters = [f"CHAPTER {n}\n\n" + f"Sentence {n} of the book. " * 80 for n in range(1, 5)]
    book = (
        "Produced by someone\n*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n\n"
        + "\n\n".join(chapters)
        + "\n\n*** END OF THIS PROJECT GUTENBERG EBOOK X ***\nLicence text"
    )
    parts = list(extractors.plain(book.replace("\n", "\r\n")))
    assert [part.strip()[:9] for part in parts] == ["CHAPTER 1", "CHAPTER 2", "CHAPTER 3", "CHAPTER 4"]
    assert not any("Licence" in part or "Produced" in part for part in parts)


def test_no_word_of_a_book_is_lost_and_no_part_is_too_long() -> None:
    text = "\n\n".join(f"ACT {n}.\n\n" + "word " * (n * 97 % 5000) for n in range(60))
    parts = list(extractors.plain(text))
    assert " ".join(parts).split() == text.split()
    assert max(map(len, parts)) <= extractors.MAX_CHAPTER_CHARS
    assert min(map(len, parts[:-1])) >= extractors.MIN_CHAPTER_CHARS


def test_cutting_prefers_blank_lines_then_lines_then_anywhere() -> None:
    assert extractors.cut("aaaa\n\nbbbb\ncc", 8) == ["aaaa", "bbbb\ncc"]
    assert extractors.cut("aaaaa\nbbbb\ncc", 8) == ["aaaaa", "bbbb\ncc"]
    assert extractors.cut("aaaaa bbbb cc", 8) == ["aaaaa", " bbbb cc"]
    assert extractors.cut("abcdefghij", 4) == ["abcd", "efgh", "ij"]


def test_structured_files_become_readable_documents() -> None:
    articles = {"x": {"title": "Ada", "extract": "A mathematician."}}
    assert list(EXTRACTORS["summaries"](json.dumps(articles))) == ["Ada\n\nA mathematician."]
    recipe = {"title": "Tea", "category": None, "servings": "2", "ingredients": ["water"], "steps": ["Boil.", "Pour."]}
    assert list(EXTRACTORS["recipes"](json.dumps({"r": recipe}))) == [
        "Tea\nServings: 2\n\nIngredients\n- water\n\nSteps\n1. Boil.\n2. Pour."
    ]
    rows = [{"book": "Ruth", "chapter": c, "text": t} for c, t in [(1, "a"), (1, "b"), (2, "c")]]
    assert list(EXTRACTORS["verses"]("\n".join(map(json.dumps, rows)))) == ["Ruth 1\n\na\nb", "Ruth 2\n\nc"]


def test_idioms_get_their_quotes_and_their_word_back() -> None:
    header = "word,pinyin,explanation,derivation,example\n"
    row = "孤舟,gū,独船◇也指人,《诗》第一回天下有船。”,”～渐远。★某《书》\n又,yòu,再,无,无\n"
    assert list(EXTRACTORS["idioms"](header + row)) == [
        "孤舟（gū）\n释义：独船。也指人\n出处：《诗》第一回：“天下有船。”\n例句：孤舟渐远。——某《书》",
        "又（yòu）\n释义：再",
    ]


def test_reviews_lose_repetitions_and_tagged_text_its_tags() -> None:
    assert list(EXTRACTORS["reviews"]("很好\n很好\n\n一般\n")) == ["很好\n\n一般"]
    assert list(EXTRACTORS["tagged"]("[中国/ns  政府/n]nt  说/v  １/m  //w\n好/a")) == ["中国政府说１/\n好"]
    long = "\n".join(f"第{n}条" + "字" * 300 for n in range(8))
    assert len(list(EXTRACTORS["reviews"](long))) == 2


def test_documents_of_a_package_carry_source_and_place(make_package, tmp_path: Path) -> None:
    source, _ = make_package({"d/a.txt": "one", "d/b.txt": "\ufefftwo"})
    archive = tmp_path / "registry" / "tinytexts-1.0-py3-none-any.whl"
    found = [(d.text, d.source, d.id) for d in extract(source, archive)]
    assert found == [("one", "tinytexts", "d/a.txt#0"), ("two", "tinytexts", "d/b.txt#0")]


@pytest.mark.parametrize(
    ("content", "extractor", "message"),
    [
        (b"\xff\xfe", "plain", r"d/a\.txt is not UTF-8"),
        (b"no json", "summaries", r"d/a\.txt is not what 'summaries' reads"),
        (b'{"a": {"title": "x"}}', "summaries", "KeyError"),
        (b"[1]", "recipes", "AttributeError"),
        (b"a,b\n1,2\n", "idioms", "KeyError"),
        (b"fine", "nonsense", "unknown extractor 'nonsense'; use one of idioms"),
    ],
)
def test_files_of_another_form_are_named(content, extractor, message, make_package, tmp_path: Path) -> None:
    source, _ = make_package({"d/a.txt": content})
    archive = tmp_path / "registry" / "tinytexts-1.0-py3-none-any.whl"
    with pytest.raises(SourceError, match=message) as caught:
        list(extract(dataclasses.replace(source, extractor=extractor), archive))
    assert "\n" not in str(caught.value)
