"""Reading ahead: the same tensors in order, never more than the limit, and no thread left behind."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fathom.checkpoint.read_ahead import read_ahead

SIZES = [40, 8, 8, 400, 4, 80, 80, 80, 12]


class Source:
    """Makes tensors of given bytes and knows the most that lived at once."""

    def __init__(self, sizes: list[int], fail_at: int | None = None) -> None:
        self.sizes, self.fail_at = sizes, fail_at
        self.alive = self.most = self.made = 0
        self.lock = threading.Lock()

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        for index, size in enumerate(self.sizes):
            if index == self.fail_at:
                raise ValueError("the source broke")
            with self.lock:
                self.alive += size
                self.most = max(self.most, self.alive)
                self.made += 1
            tensor = torch.full((size // 4,), float(index))
            weakref.finalize(tensor, self._gone, size)
            yield str(index), tensor
            del tensor

    def _gone(self, size: int) -> None:
        with self.lock:
            self.alive -= size


def threads() -> int:
    return sum(thread.name == "read-ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("limit", [0, 100, 10_000])
def test_all_tensors_come_in_order_and_within_the_limit(limit: int) -> None:
    source = Source(SIZES)
    seen = []
    for name, tensor in read_ahead(source.stream(), SIZES, limit):
        time.sleep(0.003)
        assert tensor.tolist() == [float(name)] * (SIZES[int(name)] // 4)
        seen.append(name)
        del tensor
    assert seen == [str(index) for index in range(len(SIZES))]
    assert source.most <= max(limit, max(SIZES))
    assert source.alive == 0
    assert threads() == 0


def test_the_next_is_made_while_the_last_is_used() -> None:
    source = Source([4] * 6)
    stream = read_ahead(source.stream(), source.sizes, 8)
    next(stream)
    for _ in range(500):
        if source.made == 2:
            break
        time.sleep(0.002)
    time.sleep(0.02)
    assert source.made == 2
    stream.close()
    assert threads() == 0


def test_what_the_source_raises_comes_after_what_it_made() -> None:
    source = Source(SIZES, fail_at=3)
    stream = read_ahead(source.stream(), SIZES)
    assert [next(stream)[0] for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(ValueError, match="the source broke"):
        next(stream)
    assert threads() == 0


def test_a_consumer_that_breaks_ends_the_thread() -> None:
    source = Source(SIZES)

    def consume() -> None:
        for name, _ in read_ahead(source.stream(), SIZES, 1):
            if name == "1":
                raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        consume()
    assert threads() == 0
    assert source.made <= 3


def test_more_or_fewer_tensors_than_sizes_are_handed_on() -> None:
    assert [name for name, _ in read_ahead(Source([4, 4, 4]).stream(), [4])] == ["0", "1", "2"]
    assert [name for name, _ in read_ahead(Source([4]).stream(), [4, 4, 4])] == ["0"]
