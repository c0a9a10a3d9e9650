"""How a request draws its tokens, what comes back, and the ``Sampler`` protocol."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fathom.errors import SpecError
from fathom.spec import check

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to draw tokens.

    Penalties look at the tokens drawn so far. A request with a seed draws the same whatever else is in its batch.
    """

    max_tokens: int = 256
    """Tokens drawn at most.

    Unit: tokens
    """
    min_tokens: int = 0
    """Tokens drawn at least: before them neither stop tokens nor the end of sequence are drawn.

    Unit: tokens
    """
    temperature: float = 1.0
    """What logits are divided by; 0 always takes the most likely token."""
    top_k: int = 0
    """Draw among so many of the most likely tokens; 0 among all.

    Unit: tokens
    """
    top_p: float = 1.0
    """Draw among the most likely tokens that together have this probability; 1 among all.

    Unit: fraction
    """
    min_p: float = 0.0
    """Drop tokens less likely than this share of the most likely one.

    Unit: fraction
    """
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens seen before, in the prompt too, and multiplies negative ones; 1 changes
    nothing.
    """
    presence_penalty: float = 0.0
    """Subtracted once from the logits of tokens drawn before."""
    frequency_penalty: float = 0.0
    """Subtracted from the logits of tokens for each time they were drawn."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logits of single tokens, as pairs of token id and bias.

    Example: [[11, -100.0]]
    """
    seed: int | None = None
    """Decides what is drawn; left out, another draw each time.

    Example: 1
    """
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end an answer and are not part of it, beside the model's end of sequence.

    Unit: token ids
    Example: [2]
    """
    ignore_eos: bool = False
    """Whether the model's end of sequence ends nothing."""
    logprobs: int | None = None
    """So many of the likeliest alternatives are given beside each drawn token.

    Unit: tokens
    Example: 5
    """
    prompt_logprobs: int | None = None
    """Log-probabilities of the prompt's own tokens, with so many alternatives.

    Unit: tokens
    Example: 0
    """

    def __post_init__(self) -> None:
        check.positive("max_tokens", self.max_tokens)
        check.not_negative("min_tokens", self.min_tokens)
        if self.min_tokens > self.max_tokens:
            raise SpecError("min_tokens", f"{self.min_tokens} exceeds max_tokens {self.max_tokens}", "lower it")
        check.not_negative("temperature", self.temperature)
        check.not_negative("top_k", self.top_k)
        check.fraction("top_p", self.top_p)
        check.positive("top_p", self.top_p)
        check.fraction("min_p", self.min_p)
        check.positive("repetition_penalty", self.repetition_penalty)
        for name, value in (("presence", self.presence_penalty), ("frequency", self.frequency_penalty)):
            if not math.isfinite(value):
                raise SpecError(
                    f"{name}_penalty", f"must be finite, got {value}", "give a number, 0 for none", alone=True
                )
        for token, bias in self.logit_bias:
            check.not_negative("logit_bias", token)
            if not math.isfinite(bias):
                raise SpecError(
                    "logit_bias", f"token {token} has bias {bias}", "give a finite number such as -100", alone=True
                )
        for name, asked in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if asked is not None:
                check.not_negative(name, asked)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its log-probability, and the likeliest alternatives (token id, log-probability), best first.

    Log-probabilities are of the unfiltered softmax at temperature 1, before penalties, biases and constraints: what a
    trainer computes for the same sequence.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What was drawn for one prompt: token ids, the log-probability of each, and why it ended.

    ``details`` has the alternatives where ``SamplingParams.logprobs`` asked for them, and ``prompt`` the prompt's own
    where ``prompt_logprobs`` did: its first entry is None, since nothing predicts the first token. ``stop_token`` is
    the token that was drawn to end the answer, which is not part of it; None where something else ended it. ``routing``
    says which experts the tokens of prompt and answer went to, all but the last one drawn, which was not run: an int16
    tensor (tokens, layers, experts per token), -1 where unknown, of an engine that records it.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    details: tuple[TokenLogprob, ...] = ()
    prompt: tuple[TokenLogprob | None, ...] = ()
    stop_token: TokenLogprob | None = None
    routing: object | None = field(default=None, repr=False, compare=False)


class StopChecker(Protocol):
    """Ends one answer by a rule of its caller, such as stop strings: a sampler knows token ids and no text."""

    def append(self, token_id: int) -> bool:
        """Take the answer's next token and return whether the answer ends with it."""
        ...


class Sampler(Protocol):
    """Anything that continues prompts: the engine, or a fake of twenty lines."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        stop_checkers: Sequence[StopChecker | None] | None = None,
    ) -> list[Completion]:
        """Continue each prompt; one completion each, in order.

        Where an answer has a stop checker, it ends with the token at which that says so, for the reason "stop".
        """
        ...

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[int]:
        """Yield one prompt's new token ids as they are drawn."""
        ...
