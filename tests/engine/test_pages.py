"""Who holds which page: every page free, owned or cached, names that cannot collide, neighbours where possible."""

from __future__ import annotations

import random

import pytest
import torch

from fathom.engine.block_hash import BlockHasher, ImageTokenFeatures
from fathom.engine.pages import PageAllocator

SIZE = 4


def names(tokens: list[int], salt: str = "", images: ImageTokenFeatures | None = None) -> list[bytes]:
    return list(BlockHasher(SIZE, salt=salt, images=images).hashes(tokens, len(tokens) // SIZE))


def named(pages: PageAllocator, *labels: bytes) -> list[int]:
    """Take pages, name them as one sequence does, and give them back."""
    taken = pages.allocate(len(labels))
    taken = [pages.register_hash(page, label) for page, label in zip(taken, labels, strict=True)]
    pages.release(taken)
    return taken


def test_a_sequence_grows_into_its_neighbour_and_others_begin_where_they_leave_it_room() -> None:
    pages = PageAllocator(16)
    first, second = pages.allocate(2), pages.allocate(2)
    assert first == [0, 1]
    assert second == [9, 10]
    first += pages.allocate(3, after=first[-1])
    second += pages.allocate(2, after=second[-1])
    assert first == [0, 1, 2, 3, 4]
    assert second == [9, 10, 11, 12]
    pages.verify([first, second])
    third = pages.allocate(4)
    assert third == [5, 6, 7, 8]
    pages.verify([first, second, third])


def test_a_run_too_short_is_continued_elsewhere() -> None:
    pages = PageAllocator(6)
    held = pages.allocate(6)
    pages.release([1, 4, 5])
    assert pages.allocate(3) == [4, 5, 1]
    pages.verify([[0, 2, 3], [4, 5, 1]])
    assert held == [0, 1, 2, 3, 4, 5]


def test_named_pages_stay_until_their_room_is_needed_the_longest_unused_first_and_children_before_parents() -> None:
    pages = PageAllocator(6)
    named(pages, b"a1", b"a2", b"a3")
    named(pages, b"b1", b"b2")
    assert (pages.available, pages.cached, pages.num_used) == (6, 5, 0)
    pages.allocate(2)
    assert pages.match_prefix([b"a1", b"a2", b"a3"]) == [0, 1]
    pages.allocate(2)
    assert pages.match_prefix([b"a1"]) == []
    assert len(pages.match_prefix([b"b1", b"b2"])) == 2
    pages.allocate(1)
    assert len(pages.match_prefix([b"b1", b"b2"])) == 1


def test_found_pages_are_shared_and_outlive_their_first_holder() -> None:
    pages = PageAllocator(4)
    first = pages.allocate(2)
    assert pages.register_hash(first[0], b"a") == first[0]
    found = pages.match_prefix([b"a", b"b"])
    pages.acquire(found)
    pages.verify([first, found])
    assert pages.unshared(first) == first[1:]
    assert pages.freeable_by([first]) == 1
    assert pages.freeable_by([first, found]) == 2
    pages.release(first)
    pages.verify([found])
    assert (pages.num_used, pages.cached) == (1, 0)
    assert pages.leaked([]) == 1
    pages.release(found)
    assert (pages.num_used, pages.cached) == (0, 1)


def test_a_page_computed_twice_is_kept_once() -> None:
    pages = PageAllocator(4)
    named(pages, b"a")
    again = pages.allocate(1)
    kept = pages.register_hash(again[0], b"a")
    assert [kept] == pages.match_prefix([b"a"])
    assert kept != again[0]
    pages.verify([[kept]])
    assert pages.num_used == 1


def test_forgetting_frees_what_is_cached() -> None:
    pages = PageAllocator(4)
    named(pages, b"a", b"b")
    pages.forget()
    assert (pages.cached, pages.available) == (0, 4)
    assert pages.match_prefix([b"a"]) == []
    pages.verify([])


@pytest.mark.parametrize("seed", range(4))
def test_books_agree_after_any_sequence_of_operations(seed: int) -> None:
    draw, pages = random.Random(seed), PageAllocator(24)
    held: list[list[int]] = []
    known: list[list[bytes]] = []
    for _ in range(600):
        deed = draw.random()
        if deed < 0.35 and pages.available:
            labels = draw.choice(known) if known and draw.random() < 0.5 else []
            found = pages.match_prefix(labels[: draw.randrange(1 + len(labels))])
            pages.acquire(found)
            held.append(found + pages.allocate(draw.randint(0, min(3, pages.available)), found[-1] if found else None))
        elif deed < 0.6 and held:
            sequence, label = draw.choice(held), draw.randbytes(2)
            known.append([])
            for index, page in enumerate(sequence):
                label += bytes([draw.randrange(2)])
                if pages.unshared([page]):
                    sequence[index] = pages.register_hash(page, label)
                    known[-1].append(label)
        elif held:
            pages.release(held.pop(draw.randrange(len(held))))
        pages.verify(held)
        assert pages.leaked(held) == 0
    for sequence in held:
        pages.release(sequence)
    assert (pages.num_used, pages.available) == (0, 24)


def test_the_checker_finds_a_page_that_was_lost() -> None:
    pages = PageAllocator(4)
    pages.allocate(1)
    assert pages.leaked([]) == 1
    with pytest.raises(AssertionError, match="page 0: 1 references counted, there are 0"):
        pages.verify([])


def test_names_follow_tokens_past_and_salt() -> None:
    tokens = list(range(12))
    base = names(tokens)
    assert len(set(base)) == 3
    assert names(tokens) == base
    assert names([*tokens[:4], 99, *tokens[5:]])[:2][0] == base[0]
    other = names([99, *tokens[1:]])
    assert not set(other) & set(base)
    assert not set(names(tokens, salt="tenant")) & set(base)
    assert names([1, 2, 3, 4, 5, 6, 7, 8])[1] != names([5, 6, 7, 8])[0]


def test_names_grow_with_the_tokens() -> None:
    tokens, grown = list(range(8)), BlockHasher(SIZE)
    assert list(grown.hashes(tokens, 1)) == names(tokens)[:1]
    tokens += [8, 9, 10, 11]
    assert list(grown.hashes(tokens, 3)) == names(tokens)


def test_pages_with_images_are_named_by_the_images_too() -> None:
    prompt = [1, 7, 7, 2, 3, 4, 5, 6, 7, 7, 8, 9]
    one, two = (torch.arange(8, dtype=torch.bfloat16).view(4, 2) + shift for shift in (0, 1))
    mixed = torch.cat((one[:2], two[2:]))
    first, second, third = (names(prompt, images=ImageTokenFeatures(prompt, 7, f)) for f in (one, two, mixed))
    assert first == names(prompt, images=ImageTokenFeatures(prompt, 7, one.clone()))
    assert first[0] != second[0]
    assert first[:2] == third[:2]
    assert first[2] != third[2]
    assert first[0] != names(prompt)[0]
    assert torch.equal(ImageTokenFeatures(prompt, 7, one).rows(2, 9), one[1:3])
