from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.data.loader import NeedleMixture, PackedLoader
from fathom.data.shards import TokenShards
from fathom.errors import DataError
from fathom.tokenizer import Tokenizer

Shards = dict[str, TokenShards]
WEIGHTS = {"ant": 1.0, "bee": 3.0, "cat": 6.0}


def make(shards: Shards, length: int = 32, seed: int = 5, needle: NeedleMixture | None = None) -> PackedLoader:
    return PackedLoader(shards, WEIGHTS, length, seed, needle)


def test_sequences_are_stretches_of_their_source(train_shards: Shards) -> None:
    loader = make(train_shards)
    batch = loader.next(64)
    assert tuple(batch.tokens_BT1.shape) == (64, 33)
    texts = {name: s.read(0, len(s)).astype("<u2").tobytes() for name, s in train_shards.items()}
    for tokens, source in zip(batch.tokens_BT1.numpy(), batch.source_B.tolist(), strict=True):
        assert tokens.astype("<u2").tobytes() in texts[loader.sources[source]]


@pytest.mark.parametrize("length", [3, 7, 32])
def test_one_pass_gives_every_target_once_but_for_the_rest_at_the_ends(train_shards: Shards, length: int) -> None:
    ant = {"ant": train_shards["ant"]}
    loader = PackedLoader(ant, {"ant": 1.0}, length, 3)
    total = len(ant["ant"])
    windows = (total - 1) // length
    stream = ant["ant"].read(0, total)
    offsets, orders = set(), []
    for _ in range(6):
        tokens = loader.next(windows).tokens_BT1.numpy()
        starts = _starts(stream, tokens)
        offset = min(starts)
        assert sorted(starts) == [offset + i * length for i in range(windows)]
        assert 0 <= offset <= total - 1 - windows * length
        offsets.add(offset)
        orders.append(starts)
    assert len({tuple(order) for order in orders}) == 6
    assert len(offsets) > 1 or (total - 1) % length == 0
    assert loader.progress["ant"].epochs == 6.0
    assert loader.progress["ant"].tokens == loader.tokens_seen == 6 * windows * length


def _starts(stream: np.ndarray, tokens: np.ndarray) -> list[int]:
    """Place every window in the stream; repeated short windows take each place once, in order of the stream."""
    places: dict[bytes, list[int]] = {}
    width = tokens.shape[1]
    if width <= 8:  # too short to be unique: recover the offset by trying all
        for offset in range((len(stream) - 1) % (width - 1) + 1):
            cut = [stream[s : s + width].tobytes() for s in range(offset, len(stream) - width + 1, width - 1)]
            if Counter(cut) == Counter(row.tobytes() for row in tokens):
                for number, window in enumerate(cut):
                    places.setdefault(window, []).append(offset + number * (width - 1))
                return [places[row.tobytes()].pop(0) for row in tokens]
        raise AssertionError("no offset explains the windows")
    for start in range(len(stream) - width + 1):
        places.setdefault(stream[start : start + width].tobytes(), []).append(start)
    return [places[row.tobytes()][0] for row in tokens]


@given(before=st.integers(0, 40), batch=st.integers(1, 5), seed=st.integers(0, 2**63), needles=st.booleans())
@settings(max_examples=20, deadline=None)
def test_restoring_at_any_step_gives_the_same_batches(
    train_shards: Shards, tiny_tokenizer: Tokenizer, before: int, batch: int, seed: int, needles: bool
) -> None:
    needle = NeedleMixture(tiny_tokenizer, 0.3) if needles else None
    first = make(train_shards, 96, seed, needle)
    for _ in range(before):
        first.next(batch)
    saved = json.loads(json.dumps(first.state()))
    expected = [first.next(batch) for _ in range(3)]
    second = make(train_shards, 96, seed, needle)
    second.next(1)
    second.restore(saved)
    for want in expected:
        got = second.next(batch)
        assert (got.tokens_BT1 == want.tokens_BT1).all()
        assert (got.source_B == want.source_B).all()
    assert second.state() == first.state()
    assert second.progress == first.progress


def test_batch_size_does_not_change_the_sequences(train_shards: Shards) -> None:
    one, many = make(train_shards), make(train_shards)
    whole = many.next(60).tokens_BT1
    assert all((one.next(5).tokens_BT1 == whole[i : i + 5]).all() for i in range(0, 60, 5))


def test_sources_come_in_proportion_and_seeds_differ(train_shards: Shards) -> None:
    loader = make(train_shards)
    counts = Counter(loader.sources[i] for i in loader.next(4000).source_B.tolist())
    for name, weight in WEIGHTS.items():
        assert counts[name] / 4000 == pytest.approx(weight / 10, abs=0.03)
    assert {name: p.sequences for name, p in loader.progress.items()} == dict(counts)
    assert not (make(train_shards, seed=1).next(20).tokens_BT1 == make(train_shards, seed=2).next(20).tokens_BT1).all()
    none = PackedLoader(train_shards, WEIGHTS | {"bee": 0.0}, 32, 1)
    assert none.sources == ("ant", "cat")
    assert loader.bytes_per_token == {name: s.bytes_per_token for name, s in train_shards.items()}


def test_needles_come_in_their_fraction_and_end_with_the_number(
    train_shards: Shards, tiny_tokenizer: Tokenizer
) -> None:
    loader = make(train_shards, 128, needle=NeedleMixture(tiny_tokenizer, 0.25))
    batch = loader.next(400)
    assert loader.sources[-1] == "needle"
    found = [t.tolist() for t, s in zip(batch.tokens_BT1, batch.source_B, strict=True) if s == 3]
    assert len(found) / 400 == pytest.approx(0.25, abs=0.08)
    for tokens in found:
        text = tiny_tokenizer.decode(tokens)
        number = text[-5:]
        assert tokens[-1] == tiny_tokenizer.eos_id
        assert text.count(f" is {number}") == 2
    assert loader.progress["needle"].sequences == len(found)


def test_wrong_settings_and_states_are_refused_by_name(train_shards: Shards) -> None:
    longest = len(train_shards["ant"])
    with pytest.raises(DataError, match=rf"source 'ant': {longest} tokens are fewer than one window of {longest + 1}"):
        make(train_shards, longest)
    make(train_shards, longest - 1).next(3)
    with pytest.raises(DataError, match="sources and weights differ in dog"):
        PackedLoader(train_shards, WEIGHTS | {"dog": 1.0}, 32, 1)
    with pytest.raises(DataError, match="'ant' has -1"):
        PackedLoader(train_shards, WEIGHTS | {"ant": -1}, 32, 1)
    with pytest.raises(DataError, match="no source has a weight"):
        PackedLoader(train_shards, dict.fromkeys(WEIGHTS, 0.0), 32, 1)
    with pytest.raises(DataError, match="sequence_length: must be 1 or more"):
        make(train_shards, 0)
    with pytest.raises(DataError, match="batch_size: must be 1 or more"):
        make(train_shards).next(0)
    loader = make(train_shards)
    for state, message in [
        (make(train_shards, seed=6).state(), "seed is 6, here it is 5"),
        (make(train_shards, 31).state(), "sequence_length is 31"),
        (PackedLoader(train_shards, WEIGHTS | {"ant": 2.0}, 32, 5).state(), "data is"),
        (loader.state() | {"drawn": {"ant": 1}}, "drawn does not list ant, bee, cat"),
        (loader.state() | {"drawn": dict.fromkeys(WEIGHTS, -1)}, "is no count"),
        (loader.state() | {"drawn": dict.fromkeys(WEIGHTS, 10**30)}, "is no count"),
        (loader.state() | {"drawn": dict.fromkeys(WEIGHTS, True)}, "is no count"),
        ({}, "sequence_length is None"),
    ]:
        with pytest.raises(DataError, match=message):
            loader.restore(state)
