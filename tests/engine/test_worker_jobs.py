"""Work that the engine's thread does between steps."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import pytest

from fathom.engine.engine import Engine
from fathom.engine.worker import EngineWorker
from fathom.errors import Draining
from fathom.spec import EngineSpec
from tests.engine.reference import tiny

PATIENCE = 60.0


@pytest.fixture
def worker() -> Iterator[EngineWorker]:
    made = EngineWorker(Engine(tiny("gqa"), spec=EngineSpec(page_size=4, cache_tokens=400)))
    yield made
    made.close()


def test_jobs_take_turns_and_report_their_end(worker: EngineWorker) -> None:
    order: list[str] = []
    ends: queue.Queue[BaseException | None] = queue.Queue()

    def job(name: str) -> Iterator[None]:
        for _ in range(3):
            order.append(name)
            yield

    worker.interleave(job("a"), ends.put)
    worker.interleave(job("b"), ends.put)
    worker.start()
    assert [ends.get(timeout=PATIENCE) for _ in "ab"] == [None, None]
    assert "".join(order) == "ababab"


def test_a_job_that_raises_ends_alone(worker: EngineWorker) -> None:
    ends: queue.Queue[BaseException | None] = queue.Queue()
    worker.start()
    worker.interleave((1 // (2 - number) for number in range(5)), ends.put)
    assert isinstance(ends.get(timeout=PATIENCE), ZeroDivisionError)
    worker.interleave(iter([1, 2]), ends.put)
    assert ends.get(timeout=PATIENCE) is None
    assert worker.healthy


def test_closing_ends_jobs_and_refuses_new_ones(worker: EngineWorker) -> None:
    ends: queue.Queue[BaseException | None] = queue.Queue()
    worker.interleave(iter(range(1 << 60)), ends.put)
    worker.start()
    worker.close()
    assert isinstance(ends.get(timeout=PATIENCE), Draining)
    with pytest.raises(Draining):
        worker.interleave(iter([]), ends.put)


def test_closing_with_patience_lets_a_job_end(worker: EngineWorker) -> None:
    ends: queue.Queue[BaseException | None] = queue.Queue()
    worker.interleave(iter(range(50)), ends.put)
    worker.start()
    worker.close(drain_seconds=PATIENCE)
    assert ends.get(timeout=PATIENCE) is None
