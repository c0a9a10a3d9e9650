"""One engine, many threads: every callback gets all outputs of its request, in order, and the last one."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from fathom.engine.engine import Engine
from fathom.engine.request import Output, Request
from fathom.engine.worker import EngineWorker
from fathom.errors import ContextError, Draining, EngineError, QueueFull
from fathom.spec import EngineSpec, SamplingParams
from tests.engine.reference import alone, ids, tiny

PATIENCE = 60.0


class Ear:
    """A callback that keeps outputs and signals when it has enough."""

    def __init__(self, ends: int = 1) -> None:
        self.heard: list[Output] = []
        self.threads: set[str] = set()
        self.ended = threading.Semaphore(0)
        self.begun = threading.Event()
        self._ends = ends

    def __call__(self, output: Output) -> None:
        self.heard.append(output)
        self.threads.add(threading.current_thread().name)
        self.begun.set()
        if output.finish_reason is not None:
            self.ended.release()

    def wait(self) -> list[Output]:
        for _ in range(self._ends):
            assert self.ended.acquire(timeout=PATIENCE)
        return self.heard


def greedy(*prompt: int, max_tokens: int = 6) -> Request:
    return Request(prompt=prompt, params=SamplingParams(max_tokens=max_tokens, temperature=0))


@pytest.fixture
def engine() -> Engine:
    return Engine(tiny("gqa"), spec=EngineSpec(page_size=4, cache_tokens=400, max_batch=4, step_tokens=16))


@pytest.fixture
def worker(engine: Engine) -> Iterator[EngineWorker]:
    made = EngineWorker(engine, max_waiting=8)
    yield made
    made.close()
    assert engine.stats.pages_used == engine.leaked_pages == 0


def test_each_listener_hears_its_own_tokens_in_order_on_the_workers_thread(worker: EngineWorker) -> None:
    worker.start()
    requests, ears = [greedy(*range(1, 2 + n)) for n in range(6)], [Ear() for _ in range(6)]
    names = [worker.submit(request, ear) for request, ear in zip(requests, ears, strict=True)]
    for request, ear, name in zip(requests, ears, names, strict=True):
        heard = ear.wait()
        assert ids(heard) == [token.token_id for token in alone(tiny("gqa"), request)]
        assert {output.request_id for output in heard} == {name}
        assert [output.finish_reason for output in heard] == [None] * (len(heard) - 1) + ["length"]
        assert ear.threads == {"fathom-engine"}
    assert worker.healthy
    assert worker.stats.generated_tokens == 36


def test_requests_from_many_threads_all_end(worker: EngineWorker) -> None:
    worker.start()
    answers: dict[int, list[int]] = {}

    def ask(first: int) -> None:
        ear = Ear()
        worker.submit(greedy(first, 2, 3), ear)
        answers[first] = ids(ear.wait())

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for first, answer in answers.items():
        assert answer == [token.token_id for token in alone(tiny("gqa"), greedy(first, 2, 3))]


def test_a_full_queue_refuses_and_several_requests_are_taken_all_or_none(worker: EngineWorker) -> None:
    ear = Ear(12)  # a batch of 4, and 8 that wait
    worker.submit_all([greedy(1)] * 10, ear)
    with pytest.raises(QueueFull, match="6 wait already, of at most 8") as refused:
        worker.submit_all([greedy(1)] * 3, ear)
    assert refused.value.waiting == 6
    with pytest.raises(ContextError):
        worker.submit_all([greedy(1), greedy()], ear)
    worker.submit_all([greedy(1)] * 2, ear)
    worker.start()
    assert len({output.request_id for output in ear.wait()}) == 12


def test_a_cancelled_request_ends_and_gives_back_its_pages_while_another_goes_on(worker: EngineWorker) -> None:
    long, other = Ear(), Ear()
    cancelled = worker.submit(greedy(1, 2, 3, max_tokens=90), long)
    worker.submit(greedy(4, 5, 6, max_tokens=30), other)
    worker.start()
    assert long.begun.wait(PATIENCE)
    worker.cancel(cancelled)
    worker.cancel(cancelled)
    worker.cancel(12345)
    assert long.wait()[-1].finish_reason == "cancelled"
    assert len(ids(long.heard)) < 90
    assert other.wait()[-1].finish_reason == "length"


def test_a_request_cancelled_before_it_began_ends_too(worker: EngineWorker) -> None:
    ear = Ear()
    worker.cancel(worker.submit(greedy(1), ear))
    worker.start()
    assert [output.finish_reason for output in ear.wait()] == ["cancelled"]


def test_closing_with_patience_lets_requests_end_and_refuses_new_ones(engine: Engine) -> None:
    worker, ear = EngineWorker(engine), Ear(3)
    worker.submit_all([greedy(1, 2, max_tokens=20)] * 3, ear)
    worker.start()
    worker.close(drain_seconds=PATIENCE)
    assert [output.finish_reason for output in ear.wait() if output.finish_reason] == ["length"] * 3
    with pytest.raises(Draining, match="refused while the engine closes"):
        worker.submit(greedy(1), ear)
    assert not worker.healthy
    worker.close()


def test_closing_at_once_cancels_what_is_under_way(engine: Engine) -> None:
    worker, ear = EngineWorker(engine), Ear(3)
    worker.submit_all([greedy(1, 2, max_tokens=90)] * 3, ear)
    worker.start()
    assert ear.begun.wait(PATIENCE)
    worker.close()
    assert [output.finish_reason for output in ear.wait() if output.finish_reason] == ["cancelled"] * 3
    assert engine.stats.pages_used == 0


def test_closing_a_worker_that_never_started_ends_its_requests(engine: Engine) -> None:
    worker, ear = EngineWorker(engine), Ear()
    worker.submit(greedy(1), ear)
    worker.close()
    assert ear.wait()[-1].finish_reason == "cancelled"


def test_a_failing_step_fails_its_requests_and_the_engine_goes_on(
    worker: EngineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ear, model = Ear(2), worker.engine.model
    with monkeypatch.context() as patch:
        patch.setattr(model, "logits", lambda hidden: 1 / 0)
        worker.submit_all([greedy(1, 2), greedy(3)], ear)
        worker.start()
        errors = [output.error for output in ear.wait()]
    assert errors == ["ZeroDivisionError: division by zero"] * 2
    assert worker.last_error == errors[0]
    again = Ear()
    worker.submit(greedy(1, 2), again)
    assert ids(again.wait()) == [token.token_id for token in alone(tiny("gqa"), greedy(1, 2))]
    assert worker.healthy


def test_a_scheduler_that_fails_fails_all_requests_and_the_engine_goes_on(
    worker: EngineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ear = Ear(5)
    with monkeypatch.context() as patch:
        patch.setattr(worker.engine.scheduler, "schedule", lambda: [][0])
        worker.submit_all([greedy(1, 2)] * 5, ear)
        worker.start()
        assert {output.error for output in ear.wait()} == {"IndexError: list index out of range"}
    again = Ear()
    worker.submit(greedy(1, 2), again)
    assert again.wait()[-1].finish_reason == "length"


def test_a_listener_that_raises_loses_its_request_and_nobody_elses(worker: EngineWorker) -> None:
    def broken(output: Output) -> None:
        raise KeyError("gone")

    ear = Ear()
    worker.submit(greedy(1, 2, max_tokens=90), broken)
    worker.submit(greedy(3, 4), ear)
    worker.start()
    assert ids(ear.wait()) == [token.token_id for token in alone(tiny("gqa"), greedy(3, 4))]
    assert worker.last_error == "KeyError: 'gone'"


def test_the_step_callback_comes_once_after_a_steps_listeners(worker: EngineWorker) -> None:
    calls: list[str] = []
    done = threading.Event()

    def heard(output: Output) -> None:
        calls.append("heard")
        if output.finish_reason:
            done.set()

    worker.on_step(lambda: calls.append("step"))
    worker.submit_all([greedy(1), greedy(2)], heard)
    worker.start()
    assert done.wait(PATIENCE)
    worker.close(drain_seconds=PATIENCE)
    assert calls == ["heard", "heard", "step"] * 6


def test_the_models_thread_records_no_gradients(worker: EngineWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    modes, model = [], worker.engine.model
    logits = model.logits
    monkeypatch.setattr(
        model, "logits", lambda hidden: modes.append(torch.is_inference_mode_enabled()) or logits(hidden)
    )
    ear = Ear()
    worker.submit(greedy(1), ear)
    worker.start()
    ear.wait()
    assert set(modes) == {True}


class Clock:
    """A clock that is advanced by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_stalled_seconds_count_from_the_last_step_that_succeeded_and_are_zero_when_idle(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, inside, go_on, step = Clock(), threading.Semaphore(0), threading.Semaphore(0), engine.step
    worker, ear = EngineWorker(engine, clock=clock), Ear()

    def blocked() -> list[Output]:
        inside.release()
        assert go_on.acquire(timeout=PATIENCE)
        return step()

    monkeypatch.setattr(engine, "step", blocked)
    assert worker.stalled_seconds == 0.0
    worker.submit(greedy(1, 2, max_tokens=3), ear)
    clock.now += 5
    assert worker.stalled_seconds == 5.0
    worker.start()
    for _ in range(3):
        assert inside.acquire(timeout=PATIENCE)
        before = worker.stalled_seconds
        clock.now += 7
        assert worker.stalled_seconds == before + 7
        go_on.release()
    ear.wait()
    worker.close()
    clock.now += 1000
    assert worker.stalled_seconds == 0.0


def test_an_idle_worker_is_not_stalled(worker: EngineWorker) -> None:
    clock = worker._clock = Clock()
    worker.start()
    for _ in range(3):
        ear = Ear()
        worker.submit(greedy(1), ear)
        ear.wait()
        clock.now += 1000
        assert worker.stalled_seconds == 0.0


def test_steps_that_fail_are_no_progress(worker: EngineWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fails ends its requests; one that arrives meanwhile has waited since before."""
    clock, first, second = Clock(), Ear(), Ear()
    worker._clock = clock
    step, seen = worker.engine.step, []

    def failing() -> list[Output]:
        worker.submit(greedy(3, max_tokens=1), second)
        clock.now += 3
        monkeypatch.setattr(worker.engine, "step", step)
        raise RuntimeError("no step")

    def heard(output: Output) -> None:
        seen.append(worker.stalled_seconds)
        first(output)

    monkeypatch.setattr(worker.engine, "step", failing)
    worker.submit(greedy(1, 2), heard)
    worker.start()
    assert first.wait()[-1].error == "RuntimeError: no step"
    assert second.wait()[-1].finish_reason == "length"
    assert seen == [3.0]
    assert worker.stalled_seconds == 0.0


def test_an_engine_that_plans_nothing_fails_its_requests_instead_of_spinning(
    worker: EngineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.engine.scheduler, "schedule", lambda: [])
    for _ in range(3):
        ear = Ear()
        worker.submit(greedy(1, 2), ear)
        if not worker._thread.is_alive():
            worker.start()
        assert (ear.wait()[-1].error or "").startswith("EngineError: scheduler: runs none of 0 running and 1 waiting")
    worker.close()
    assert not worker.healthy
    assert worker._failures == 3


@pytest.mark.parametrize("during", ["cancellation", "failed step", "closing"])
def test_where_a_request_cannot_be_ended_every_listener_gets_an_error_and_health_says_so(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    worker, ears, steps = EngineWorker(engine, max_waiting=8), [Ear() for _ in range(3)], []
    called: list[None] = []
    worker.on_step(lambda: called.append(None))

    def end(request_id: int, *_: object) -> Output:
        raise IndexError("books of pages")

    def failing() -> list[Output]:
        steps.append(None)
        raise RuntimeError("no step")

    monkeypatch.setattr(engine, "end", end)
    monkeypatch.setattr(engine, "step", failing if during == "failed step" else lambda: [])
    names = [worker.submit(greedy(1, 2, max_tokens=90), ear) for ear in ears]
    if during == "cancellation":
        worker.cancel(names[1])
    if during == "closing":
        worker._draining, worker._deadline = True, 0.0
    worker.start()
    for name, ear in zip(names, ears, strict=True):
        assert [(output.request_id, output.finish_reason, output.error) for output in ear.wait()] == [
            (name, "error", "IndexError: books of pages")
        ]
    worker._thread.join(PATIENCE)
    assert not worker.healthy
    assert worker.last_error == "IndexError: books of pages"
    assert called == [None]
    with pytest.raises(EngineError, match="thread ended after IndexError: books of pages; restart the process"):
        worker.submit(greedy(1), Ear())
    worker.close()
