"""Requests to the engine and their outputs, in token ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from fathom.spec.sampling import FinishReason, SamplingParams, StopChecker, TokenLogprob

if TYPE_CHECKING:
    from fathom.engine.constraint import TokenConstraint


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to continue.

    A higher ``priority`` goes first and preempts lower ones when the pool is full; equal ones go in order of arrival.
    ``adapter`` names the adapter of the engine that the model has for it. Prefixes are shared only between requests of
    equal ``salt`` and adapter. ``features_ND`` are the prompt's image tokens, as
    ``Decoder.forward`` takes them. ``constraint`` says which tokens may come next; it is this request's own and changes
    with every sampled token. ``stop_checker`` takes each token of the answer and ends it, with that token as its last,
    for the reason "stop", but not before ``min_tokens``.
    """

    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    salt: str = ""
    adapter: str | None = None
    features_ND: Tensor | None = None
    constraint: TokenConstraint | None = None
    stop_checker: StopChecker | None = None


@dataclass(slots=True, kw_only=True)  # not frozen, which takes thrice as long to make
class Output:
    """One request's share of one step.

    ``tokens`` never hold the stop token, which is ``stop_token`` where one ended the answer. The last output of a
    request has a ``finish_reason``, and ``error`` is one line where that is "error". ``prompt_logprobs`` come with
    the first output, where asked for. Of the ``prompt_tokens``, ``cached_tokens`` were found in the prefix cache.
    ``routing`` (N, L, K), int16, comes with the last output of an engine that records it: ``Completion`` says what it
    is.
    """

    request_id: int
    tokens: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None
    stop_token: TokenLogprob | None = None
    routing: Tensor | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """An engine at one moment.

    Requests that run or wait; pages of the pool, those that requests hold and those kept for their prefix; and counts
    since the engine was made: prompt tokens, those of them found in the prefix cache, tokens generated, preemptions,
    tokens drafted and accepted, steps.
    """

    running: int = 0
    waiting: int = 0
    pages_total: int = 0
    pages_used: int = 0
    pages_cached: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    drafted: int = 0
    accepted: int = 0
    steps: int = 0

    @property
    def acceptance(self) -> float:
        """Share of drafted tokens that were accepted; 0 before any was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0
