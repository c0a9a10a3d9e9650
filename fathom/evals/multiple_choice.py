"""Multiple choice by log-likelihood: the prediction is the choice with the highest log-likelihood after the context.

X choices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.model.cache import StaticCache
from fathom.model.decoder import Decoder
from fathom.model.eval_mode import eval_mode

LOGIT_ROWS = 256
"""Rows of logits that are computed at once."""
PREFILL_CHUNK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A context and its continuations; ``choice_bytes`` are lengths in UTF-8, ``answer`` is the gold index."""

    context_ids: Sequence[int]
    choices_ids: Sequence[Sequence[int]]
    choice_bytes: Sequence[int]
    answer: int


@dataclass(frozen=True, slots=True)
class ChoiceResult:
    """Log-likelihood of each choice in nats; ``chosen`` is the argmax, ``chosen_norm`` the argmax per byte.

    ``truncated`` counts the tokens dropped on the left of a context that exceeds the model's. ``greedy`` says of each
    choice whether every token of it is the most likely one where it stands.
    """

    logprobs: tuple[float, ...]
    chosen: int
    chosen_norm: int
    truncated: int = 0
    greedy: tuple[bool, ...] = ()


def score_questions(
    model: Decoder, questions: Sequence[Question], *, on_result: Callable[[int, ChoiceResult], None] | None = None
) -> list[ChoiceResult]:
    """Score all choices of every question.

    A context is prefilled once for all its choices, and the common prefix of all contexts once for all questions; the
    cached keys and values are copied. ``on_result`` is called with the index and result of every question.
    """
    results = []
    contexts = [_truncate_context(model, question) for question in questions]
    with eval_mode(model), torch.inference_mode():
        prefix_cache = _shared_prefix_cache(model, questions, contexts)
        for index, (question, context) in enumerate(zip(questions, contexts, strict=True)):
            logprobs, greedy = _scores(model, question, context, prefix_cache)
            per_byte = [logprob / max(1, size) for logprob, size in zip(logprobs, question.choice_bytes, strict=True)]
            truncated = len(question.context_ids) - len(context)
            scored = ChoiceResult(tuple(logprobs), _best(logprobs), _best(per_byte), truncated, tuple(greedy))
            results.append(scored)
            if on_result is not None:
                on_result(index, scored)
    return results


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _truncate_context(model: Decoder, question: Question) -> list[int]:
    """Truncate a context on the left so that the longest choice fits after it."""
    longest = max(len(choice) for choice in question.choices_ids)
    # The last token of a choice is predicted and never an input.
    max_context = model.spec.max_position_embeddings - longest + 1
    return list(question.context_ids)[-max(1, max_context) :]


def _shared_prefix_cache(model: Decoder, questions: Sequence[Question], contexts: Sequence[list[int]]) -> StaticCache:
    """Prefill the common prefix of all contexts into a cache of one row, long enough for every question."""
    longest = max(
        (
            len(context) + max(map(len, question.choices_ids))
            for question, context in zip(questions, contexts, strict=True)
        ),
        default=1,
    )
    cache = StaticCache.allocate(model.spec, batch_size=1, max_length=longest, device=model.device, dtype=model.dtype)
    if len(contexts) > 1:
        common = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*contexts, strict=False)))
        _prefill(model, cache, contexts[0][: min(common, min(map(len, contexts)) - 1)])
    return cache


def _prefill(model: Decoder, cache: StaticCache, tokens: Sequence[int]) -> None:
    device = model.device
    for start in range(0, len(tokens), PREFILL_CHUNK):
        model(torch.tensor([list(tokens[start : start + PREFILL_CHUNK])], device=device), cache=cache)


def _repeat_cache(cache: StaticCache, count: int) -> StaticCache:
    """Return a cache of ``count`` rows, each a copy of the one row of ``cache``."""
    layers = [type(layer)(tuple(part.repeat(count, 1, 1, 1) for part in layer.tensors)) for layer in cache.layers]
    return StaticCache(layers, cache.lengths * count, cache.max_length, cache.window)


def _scores(
    model: Decoder, question: Question, context: Sequence[int], prefix_cache: StaticCache
) -> tuple[list[float], list[bool]]:
    """Return each choice's log-likelihood, and whether it is greedy; choices run as one batch, padded on the right."""
    cache = _repeat_cache(prefix_cache, 1)
    _prefill(model, cache, context[prefix_cache.lengths[0] : -1])
    choices = question.choices_ids
    longest = max(map(len, choices))
    inputs = [[context[-1], *choice[:-1]] + [0] * (longest - len(choice)) for choice in choices]
    tokens_XT = torch.tensor(inputs, device=model.device)
    hidden_XTD = model(tokens_XT, cache=_repeat_cache(cache, len(choices))).hidden_BTD
    hidden_ND = torch.cat([hidden_XTD[row, : len(choice)] for row, choice in enumerate(choices)])
    targets_N = torch.tensor([token for choice in choices for token in choice], device=hidden_ND.device)
    logprobs_N, likeliest_N = _token_scores(model, hidden_ND, targets_N)
    lengths = [len(choice) for choice in choices]
    return (
        [float(part.sum()) for part in torch.split(logprobs_N, lengths)],
        [bool(part.all()) for part in torch.split(likeliest_N, lengths)],
    )


def _token_scores(model: Decoder, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability of every token, and whether it is the most likely one."""
    logprobs, likeliest = [], []
    for hidden, targets in zip(torch.split(hidden_ND, LOGIT_ROWS), torch.split(targets_N, LOGIT_ROWS), strict=True):
        logits = model.logits(hidden)
        logprobs.append(-F.cross_entropy(logits, targets, reduction="none"))
        likeliest.append(logits.argmax(dim=-1) == targets)
    return torch.cat(logprobs), torch.cat(likeliest)
