from __future__ import annotations

import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.data.dedupe import ExactDeduplicator, NearDeduplicator, content_key
from fathom.data.minhash import Signer
from fathom.errors import DataError
from fathom.spec.data import Deduplication


def random_text(rng: random.Random, length: int = 600) -> str:
    return "".join(rng.choices("abcdefgh 天地玄黄", k=length))


def jaccard(left: str, right: str, width: int) -> float:
    a, b = ({text[i : i + width] for i in range(len(text) - width + 1)} for text in (left, right))
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("width", [1, 2, 5, 12, 16])
def test_signatures_estimate_the_true_jaccard_similarity(width: int) -> None:
    rng = random.Random(width)
    signer = Signer(permutations=512, shingle_chars=width)
    for share in (0.2, 0.5, 0.8):
        left = random_text(rng)
        right = left[: int(600 * share)] + random_text(rng, 600 - int(600 * share))
        a, b = signer.sign([left, right])
        assert np.mean(a == b) == pytest.approx(jaccard(left, right, width), abs=0.09)


def test_a_signature_is_the_least_permuted_shingle_and_needs_no_neighbours() -> None:
    rng = random.Random(3)
    signer = Signer(permutations=16, shingle_chars=4)
    texts = [random_text(rng, rng.randint(1, 400)) for _ in range(300)] + [random_text(rng, 70_000), "x"]
    together = signer.sign(texts)
    for index in (0, 7, 299, 300, 301):
        assert (signer.sign([texts[index]])[0] == together[index]).all()
    shingles = [texts[7][i : i + 4] for i in range(len(texts[7]) - 3)]
    assert (signer.sign(shingles).min(axis=0) == together[7]).all()


@given(text=st.text(min_size=1), spaces=st.sampled_from([" ", "\n", "\t \n"]))
@settings(max_examples=100, deadline=None)
def test_exact_keys_ignore_case_and_white_space_only(text: str, spaces: str) -> None:
    assert content_key(spaces.join(["Ab", text])) == content_key(" ".join(["ab", text.strip()]) + " ")
    assert content_key(f"x{text}y") != content_key(f"x{text}z")


def test_exact_repetitions_are_found_once() -> None:
    exact = ExactDeduplicator()
    assert [exact.is_new(content_key(text)) for text in ["a b", "A  b", "c", "a b"]] == [True, False, True, False]


def test_near_copies_go_and_different_texts_stay_whatever_the_batches() -> None:
    rng = random.Random(5)
    originals = [random_text(rng) for _ in range(60)]
    copies = [f"{text[:300]}#{text[301:]}" for text in originals]
    assert min(map(lambda a, b: jaccard(a, b, 12), originals, copies)) > 0.9
    far = [text[:300] + random_text(rng, 300) for text in originals]
    texts = originals + copies + far
    whole = NearDeduplicator(Deduplication()).keep(texts)
    assert whole == [True] * 60 + [False] * 60 + [True] * 60
    batched = NearDeduplicator(Deduplication())
    assert [v for i in range(0, 180, 7) for v in batched.keep(texts[i : i + 7])] == whole
    assert batched.keep([]) == []


def test_missing_datasketch_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(DataError, match=r"pip install .*\[data\]"):
        NearDeduplicator(Deduplication())
