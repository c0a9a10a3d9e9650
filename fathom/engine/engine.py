"""The engine: many requests, one forward pass a step, over one pool of pages."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from itertools import islice

import torch
from torch import Tensor

from fathom.engine.answer import append_tokens, completion, one_line
from fathom.engine.cache_sizing import make_pool
from fathom.engine.drafting.factory import drafting_kind, make_drafter
from fathom.engine.forward_pass import ForwardPass
from fathom.engine.input_processor import InputProcessor
from fathom.engine.model_runner import ModelRunner
from fathom.engine.native_step import native_step
from fathom.engine.pages import PageAllocator
from fathom.engine.request import EngineStats, Output, Request
from fathom.engine.sampling.draw import SamplingFailure
from fathom.engine.scheduler import ScheduledRequest, Scheduler
from fathom.engine.state import RequestState
from fathom.errors import EngineError, SpecError
from fathom.kernels.tensors import autocasts
from fathom.model.adapters.adapter import Adapter
from fathom.model.adapters.attach import with_adapter
from fathom.model.decoder import Decoder
from fathom.model.native import NativeModel
from fathom.spec.engine import EngineSpec
from fathom.spec.sampling import Completion, FinishReason, SamplingParams, StopChecker, TokenLogprob
from fathom.spec.token_ids import TokenIds, to_token_ids


class Engine:
    """Continues prompts with one model; implements ``fathom.spec.sampling.Sampler``.

    ``submit`` requests and call ``step`` while the engine ``has_work``, or let ``sample`` and ``stream`` do both.
    Whatever else runs, is cached, or is preempted and recomputed, a request's answer is the one it would get alone,
    to rounding. One thread at a time; ``EngineWorker`` serves many. The model is put in evaluation mode.

    ``unused_ids`` are ids of the model's vocabulary that have no token, such as those that pad it: they are never
    sampled, but for those of ``eos_ids``. Log-probabilities stay those of the softmax over the whole vocabulary, which
    a trainer computes.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        eos_ids: Collection[int] = (),
        unused_ids: Collection[int] = (),
        spec: EngineSpec | None = None,
    ) -> None:
        self.model = model.eval()
        self.spec = spec or EngineSpec()
        self.eos_ids = frozenset(eos_ids)
        drafting = drafting_kind(model, self.spec)
        self.pool = make_pool(model, self.spec, extra_layers=int(drafting == "mtp"))
        self.pages = PageAllocator(self.pool.num_pages)
        draft_tokens = 0 if drafting == "none" else self.spec.draft_tokens
        self.scheduler = Scheduler(self.spec, self.pages, window=model.window, draft_tokens=draft_tokens)
        self.last_error: Exception | None = None
        self._input_processor = InputProcessor(model.spec, self.scheduler, self.eos_ids)
        self.native = native_step(model, self.pool, self.spec)
        unused_ids_N = _unused_tensor(set(unused_ids) - self.eos_ids, model.spec.vocab_size, self.pool.device)
        self._recorded = self.spec.record_routing and model.spec.num_moe_layers > 0
        native = self.native if isinstance(self.native, NativeModel) else None
        forward = ForwardPass(model, self.pool, native=native, record_routing=self._recorded)
        drafter = make_drafter(drafting, forward, self.pool, self.spec, unused_ids_N=unused_ids_N)
        self._runner = ModelRunner(forward, drafter, unused_ids_N=unused_ids_N)
        self._states: dict[int, RequestState] = {}
        self._output_queues: dict[int, list[Output]] = {}
        self._undelivered: list[Output] = []
        self._steps = self._generated_tokens = 0

    @property
    def context(self) -> int:
        """Tokens a prompt and its answer may have together."""
        return self.model.spec.max_position_embeddings

    @property
    def has_work(self) -> bool:
        """Whether ``step`` has anything to do."""
        return bool(self._states or self._undelivered)

    @property
    def stats(self) -> EngineStats:
        """The engine at this moment."""
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            pages_total=self.pages.total,
            pages_used=self.pages.num_used,
            pages_cached=self.pages.cached,
            prompt_tokens=self.scheduler.prompt_tokens,
            cached_tokens=self.scheduler.cached_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=self.scheduler.preemptions,
            drafted=self._runner.drafted,
            accepted=self._runner.accepted,
            steps=self._steps,
        )

    @property
    def leaked_pages(self) -> int:
        """Pages that are allocated though no request holds them; anything but 0 is a fault of the engine."""
        return self.pages.leaked(state.pages for state in self._states.values())

    def prepare(self, request: Request) -> RequestState:
        """Check a request and number it, without letting it wait yet. May be called from any thread.

        Raises:
            ContextError: the prompt is empty, or does not fit the context or the pool together with ``max_tokens``.
            SpecError: a token id is outside the vocabulary, not as many features as image tokens, or an adapter that
                the engine does not have.
        """
        if request.adapter is not None and request.adapter not in self._runner.adapted:
            known = ", ".join(self._runner.adapted) or "none"
            raise SpecError("adapter", f"the engine has no {request.adapter!r}", f"use one it has: {known}")
        return self._input_processor.process(request)

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        """Hold an adapter beside the model's weights, for requests that name it; before any request runs.

        The weights are there once. A step runs the requests of each adapter in a pass of their own, and those of none
        in another, over one pool of pages.

        Raises:
            CheckpointError: it is of another model.
            SpecError: there is one of that name.
        """
        if name in self._runner.adapted:
            raise SpecError("adapter", f"{name!r} names two adapters", "give one of them another name")
        adapted = with_adapter(self.model, adapter)
        self._runner.adapted[name] = ForwardPass(adapted, self.pool, record_routing=self._recorded)

    def decoder(self, adapter: str | None) -> Decoder:
        """Return the model with an adapter that the engine holds, or without one."""
        return self._runner.passes(adapter).model

    def enqueue(self, state: RequestState) -> None:
        """Add a prepared request to the waiting queue."""
        if not self._states and isinstance(self.native, NativeModel):
            self.native.follow_changes()
        self._states[state.id] = state
        self.scheduler.add(state)

    def submit(self, request: Request) -> int:
        """Check a request, add it to the waiting queue, and return its id; raises as ``prepare`` does."""
        state = self.prepare(request)
        self.enqueue(state)
        return state.id

    def cancel(self, request_id: int) -> None:
        """End a request at once and free its pages; unknown and finished ones are ignored."""
        self.end(request_id, "cancelled")

    def end(self, request_id: int, reason: FinishReason, error: str | None = None) -> Output | None:
        """End a request from outside and return its last output; None where there is no such request."""
        state = self._states.get(request_id)
        if state is None:
            return None
        self._remove(state)
        return state.output((), reason, error=error)

    def forget(self) -> None:
        """Empty the prefix cache, as is needed when the model's weights have changed; only between requests."""
        if self._states:
            raise SpecError("forget", f"{len(self._states)} requests are under way", "let them end or cancel them")
        self.pages.forget()
        if isinstance(self.native, NativeModel):
            self.native.refresh()

    def step(self) -> list[Output]:
        """Run one forward pass and return the output of each request in it; empty when there is nothing to do.

        A pass that raises ends its requests with an error and is kept in ``last_error``; the engine continues.

        Raises:
            EngineError: requests are under way and the scheduler ran none of them, a fault of the engine.
        """
        outputs, self._undelivered = self._undelivered, []
        self.last_error = None
        scheduled = self.scheduler.schedule()
        if not scheduled:
            if self._states and not outputs:
                raise EngineError(self._no_progress())
            return outputs
        self._steps += 1
        try:
            with torch.inference_mode(), self._autocast():
                drawn = self._runner.run(scheduled)
        except Exception as error:
            self.last_error = error
            return [*outputs, *(self._fail(work.state, one_line(error)) for work in scheduled)]
        processed = (self._process_output(work, drawn.get(work.state.id)) for work in scheduled)
        return [*outputs, *(output for output in processed if output is not None)]

    def _no_progress(self) -> str:
        stats = self.stats
        return (
            f"scheduler: runs none of {stats.running} running and {stats.waiting} waiting requests, with "
            f"{stats.pages_used} of {stats.pages_total} pages in use; cancel them, and report this with the requests' "
            "lengths, since it is a fault of Fathom"
        )

    def _process_output(
        self, work: ScheduledRequest, drawn: Sequence[TokenLogprob] | SamplingFailure | None
    ) -> Output | None:
        """Update one request with the result of a step; None while it prefills its prompt."""
        state = work.state
        if isinstance(drawn, SamplingFailure):
            return self._fail(state, drawn.message)
        state.num_computed_tokens = work.end
        if drawn is None:
            self._cache_full_pages(state)
            return None
        state.num_computed_tokens += len(drawn) - 1
        return self._append_tokens(work, drawn)

    def _append_tokens(self, work: ScheduledRequest, drawn: Sequence[TokenLogprob]) -> Output:
        """Append sampled tokens to an answer, up to the one that ends it."""
        state, first = work.state, not work.state.drawn
        added = append_tokens(state, drawn)
        self._generated_tokens += len(added.tokens)
        if added.error is not None:
            return self._fail(state, added.error, added.tokens)
        # accepted drafts after the token that ended the answer are dropped
        state.num_computed_tokens = min(state.num_computed_tokens, len(state.tokens))
        self._cache_full_pages(state)
        if added.reason is not None:
            self._remove(state)
        elif work.num_draft_slots:
            self.scheduler.free_draft_pages(state)
        return state.output(added.tokens, added.reason, stop_token=added.stop_token, with_prompt=first)

    def _cache_full_pages(self, state: RequestState) -> None:
        """Register the hashes of pages that are full now, so that other requests share them."""
        if state.num_computed_tokens < (state.num_hashed_pages + 1) * self.pool.page_size:
            return
        full = state.num_cacheable_tokens // self.pool.page_size
        if state.block_hashes is None or full <= state.num_hashed_pages:
            return
        hashes = state.block_hashes.hashes(state.tokens, full)
        for index in range(state.num_hashed_pages, full):
            state.pages[index] = self.pages.register_hash(state.pages[index], hashes[index])
        state.num_hashed_pages = full

    def _fail(self, state: RequestState, message: str, kept: Sequence[TokenLogprob] = ()) -> Output:
        """End a request with an error and clear the pages that only it holds: their values may not be finite."""
        self.pool.clear(self.pages.unshared(state.pages))
        self._remove(state)
        return state.output(tuple(kept), "error", error=message)

    def _remove(self, state: RequestState) -> None:
        del self._states[state.id]
        self.scheduler.remove(state)

    def sample(
        self,
        prompts: Sequence[TokenIds],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        features: Sequence[Tensor | None] | None = None,
        stop_checkers: Sequence[StopChecker | None] | None = None,
    ) -> list[Completion]:
        """Continue each prompt; one completion each, in order.

        ``features`` are each prompt's image tokens (N, D), as ``Decoder.forward`` takes them. ``stop_checkers`` are as
        ``Request`` has them, one object for each prompt.

        Raises:
            ContextError: a prompt is empty, or does not fit the context or the pool together with ``max_tokens``.
            SpecError: a token id is outside the vocabulary, there are not as many parameters or stop checkers as
                prompts, or not as many features as a prompt has image tokens.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        seen = [None] * len(prompts) if features is None else list(features)
        checkers = [None] * len(prompts) if stop_checkers is None else list(stop_checkers)
        for name, given in (("params", each), ("features", seen), ("stop_checkers", checkers)):
            if len(given) != len(prompts):
                raise SpecError(name, f"{len(given)} for {len(prompts)} prompts", "give one for each prompt")
        states = [
            self.prepare(
                Request(prompt=to_token_ids("prompt", prompt), params=p, features_ND=features_ND, stop_checker=checker)
            )
            for prompt, p, features_ND, checker in zip(prompts, each, seen, checkers, strict=True)
        ]
        outputs: list[list[Output]] = [[] for _ in states]
        with self._autocast():  # so that weights are cast once, not at every step
            for index, output in self._run(states):
                outputs[index].append(output)
        return [completion(each) for each in outputs]

    def stream(self, prompt: TokenIds, params: SamplingParams, *, features_ND: Tensor | None = None) -> Iterator[int]:
        """Yield one prompt's new token ids as they are drawn; the same tokens ``sample`` gives for the same seed.

        The prompt is checked at once, not at the first token. Closing the iterator cancels the request.
        """
        request = Request(prompt=to_token_ids("prompt", prompt), params=params, features_ND=features_ND)
        return self._tokens(self.outputs(request))

    def outputs(self, request: Request) -> Generator[Output, None, None]:
        """Run one request and yield its output of each step; otherwise as ``stream``."""
        return self._streamed(self.prepare(request))

    @staticmethod
    def _tokens(outputs: Generator[Output, None, None]) -> Iterator[int]:
        with closing(outputs):
            for output in outputs:
                for token in output.tokens:
                    yield token.token_id

    def _autocast(self) -> AbstractContextManager[None]:
        """Compute in the spec's dtype; the outermost context keeps the weights' casts until it is left."""
        if self.spec.compute_dtype == "auto" and not autocasts(self.pool.device.type):
            return nullcontext()
        return torch.autocast(
            self.pool.device.type, dtype=torch.bfloat16, enabled=self.spec.compute_dtype == "bfloat16"
        )

    def run(self, requests: Iterable[Request]) -> Generator[tuple[int, Output], None, None]:
        """Run many requests together; yield each one's index with its output of every step.

        A request is taken and checked when fewer than two batches are unfinished. ``cancel`` ends one, closing the
        iterator all; errors as of ``prepare``.
        """
        return self._run(map(self.prepare, requests))

    def _run(self, states: Iterable[RequestState]) -> Generator[tuple[int, Output], None, None]:
        coming, running = enumerate(states), dict[int, RequestState]()
        try:
            while True:
                for index, state in islice(coming, 2 * self.spec.max_batch - len(running)):
                    self._open_output_queue(state)
                    running[index] = state
                if not running:
                    return
                self._step_and_dispatch()
                for index, state in list(running.items()):
                    while queue := self._output_queues[state.id]:
                        yield index, queue.pop(0)
                    if state.id not in self._states:
                        self._close_output_queue(running.pop(index))
        finally:
            for state in running.values():
                self._close_output_queue(state)

    def _streamed(self, state: RequestState) -> Generator[Output, None, None]:
        queue = self._open_output_queue(state)
        try:
            while queue or state.id in self._states:
                while queue:
                    yield queue.pop(0)
                if state.id in self._states:
                    self._step_and_dispatch()
        finally:
            self._close_output_queue(state)

    def _open_output_queue(self, state: RequestState) -> list[Output]:
        self.enqueue(state)
        return self._output_queues.setdefault(state.id, [])

    def _close_output_queue(self, state: RequestState) -> None:
        self.cancel(state.id)
        self._output_queues.pop(state.id, None)

    def _step_and_dispatch(self) -> None:
        """Run a step for ``sample`` or ``stream``; outputs of other requests are returned by the next ``step``."""
        for output in self.step():
            self._output_queues.get(output.request_id, self._undelivered).append(output)
        if self.last_error is not None:
            raise self.last_error


def _unused_tensor(unused_ids: Collection[int], vocab_size: int, device: torch.device) -> Tensor | None:
    ids = sorted(unused_ids)
    if ids and not (ids[0] >= 0 and ids[-1] < vocab_size and len(ids) < vocab_size):
        raise SpecError(
            "unused_ids",
            f"{len(ids)} ids from {ids[0]} to {ids[-1]}, of a vocabulary of {vocab_size}",
            "give ids of this model's vocabulary, and leave it a token",
        )
    return torch.tensor(ids, device=device) if ids else None
