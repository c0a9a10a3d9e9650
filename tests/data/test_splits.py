"""What is held out of a source: whole documents where that works, pieces of them where it does not."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.data.dedupe import content_key
from fathom.data.document import Document
from fathom.data.splits import Candidate, SplitDocuments, split_documents

FRACTION, MIN_CHARS = 0.02, 32


def candidates(texts: Sequence[str]) -> list[Candidate]:
    return [
        Candidate(content_key(text), len(text.encode()), Document(text, "notes", f"note-{index}"))
        for index, text in enumerate(texts)
    ]


def prose(paragraphs: int, seed: int = 0, separator: str = "\n\n") -> str:
    rng = random.Random(seed)
    word = lambda: "".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9)))  # noqa: E731
    sentence = lambda: " ".join(word() for _ in range(9)) + ". "  # noqa: E731
    return separator.join("".join(sentence() for _ in range(4)).strip() for _ in range(paragraphs))


def by_hash_alone(given: Sequence[Candidate]) -> tuple[list[str], list[str]]:
    """The rule for corpora of many documents, written out."""
    held_out = [each for each in given if int.from_bytes(each.key[8:]) < int(FRACTION * 2**64)]
    if not held_out:
        held_out = [min(given, key=lambda each: int.from_bytes(each.key[8:]))]
    train = [each.document.text for each in given if each not in held_out]
    return train, [each.document.text for each in held_out]


def texts_of(found: SplitDocuments) -> tuple[list[str], list[str]]:
    train, held_out = ([each.document.text for each in found.rows[split]] for split in ("train", "held_out"))
    return train, held_out


@pytest.mark.parametrize("count", [6, 60, 600])
def test_documents_enough_are_split_whole_as_ever(count: int) -> None:
    given = candidates([prose(2, seed) for seed in range(count)])
    found = split_documents(given, FRACTION, MIN_CHARS)
    assert found.cut == 0
    assert texts_of(found) == by_hash_alone(given)


@pytest.mark.parametrize("separator", ["\n\n", "\n", " "], ids=["paragraphs", "lines", "one line"])
def test_one_document_gives_both_halves(separator: str) -> None:
    text = prose(60, separator=separator)
    found = split_documents(candidates([text]), FRACTION, MIN_CHARS)
    train, held_out = texts_of(found)
    size = sum(map(len, held_out))
    assert found.cut == 1
    assert 0.02 * len(text) < size < 0.2 * len(text)
    assert size + sum(map(len, train)) > 0.98 * len(text)
    assert all(piece in text for piece in train + held_out)
    if separator == "\n\n":  # paragraphs stay whole
        paragraphs = set(text.split("\n\n"))
        assert {part for piece in held_out for part in piece.split("\n\n")} <= paragraphs


def test_a_large_note_beside_small_ones_is_never_held_out_whole() -> None:
    small = [prose(1, seed) for seed in range(1, 5)]
    for seed in range(40):  # in some, the large one has the hash that used to be held out
        given = candidates([prose(80, 100 + seed), *small])
        train, held_out = texts_of(split_documents(given, FRACTION, MIN_CHARS))
        assert 0 < sum(map(len, held_out)) < 0.3 * sum(map(len, train))


def sentences(texts: Sequence[str]) -> set[str]:
    parts = (part for text in texts for part in re.split(r"(?<=\n)|(?<=[.!?] )|(?<=[。！？])", text))
    return {" ".join(part.casefold().split()) for part in parts if len(part.strip()) >= MIN_CHARS}


@given(
    documents=st.lists(
        st.lists(st.sampled_from([prose(1, seed) for seed in range(12)]), min_size=1, max_size=12).map("\n\n".join),
        min_size=1,
        max_size=5,
        unique_by=content_key,
    ),
    order=st.randoms(use_true_random=False),
)
def test_cut_documents_share_no_sentence_and_keep_the_larger_part(documents: list[str], order: random.Random) -> None:
    found = split_documents(candidates(documents), FRACTION, MIN_CHARS)
    train, held_out = texts_of(found)
    again = list(documents)
    order.shuffle(again)
    assert sorted(texts_of(split_documents(candidates(again), FRACTION, MIN_CHARS))[1]) == sorted(held_out)
    if found.cut:
        assert not sentences(train) & sentences(held_out)
        assert 0 < sum(len(text.encode()) for text in held_out) < sum(len(text.encode()) for text in train)


def test_a_text_that_cannot_be_cut_is_left_whole() -> None:
    found = split_documents(candidates(["too short to be cut in two at all"]), FRACTION, MIN_CHARS)
    assert found.cut == 0
    assert sum(map(len, found.rows.values())) == 1
    repeated = "The river runs to the sea, and a road follows it.\n" * 40
    assert split_documents(candidates([repeated]), FRACTION, MIN_CHARS).cut == 0
