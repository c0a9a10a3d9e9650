"""SamplingParams and the ``Sampler`` protocol: all that post-training and evaluation need of an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fathom.spec import check

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to draw tokens. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 leave the distribution whole.

    ``seed`` fixes a request's draws whatever else is in its batch. ``stop_token_ids`` end an answer and are not part
    of it; the model's own end-of-sequence token does so too unless ``ignore_eos``.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        check.positive("max_tokens", self.max_tokens)
        check.not_negative("temperature", self.temperature)
        check.not_negative("top_k", self.top_k)
        check.fraction("top_p", self.top_p)
        check.positive("top_p", self.top_p)
        check.fraction("min_p", self.min_p)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What was drawn for one prompt: token ids, the log-probability of each, and why it ended."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


class Sampler(Protocol):
    """Anything that continues prompts: the engine, or a fake of twenty lines."""

    def sample(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        """Continue each prompt; one completion each, in order."""
        ...

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[int]:
        """Yield one prompt's new token ids as they are drawn."""
        ...
