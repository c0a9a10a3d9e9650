"""Needle in a haystack: accuracy of retrieving a fact from a long text, and the gain in log-likelihood from it.

A answer tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.model.decoder import Decoder
from fathom.model.eval_mode import eval_mode
from fathom.progress import NULL_PROGRESS, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleTrial:
    """One question: a prompt with the needle, the same prompt without it, and the answer.

    ``length`` and ``depth`` are its cell of the table.
    """

    length: int
    depth: float
    prompt_ids: Sequence[int]
    blank_prompt_ids: Sequence[int]
    answer_ids: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleResult:
    """``accuracy[i][j]`` and ``gain_bits[i][j]`` are means over the trials at ``lengths[i]`` and ``depths[j]``.

    Accuracy is the share of answers that greedy decoding gives exactly. The gain is the increase of the answer's
    log-likelihood through the needle, in bits per answer token.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    accuracy: tuple[tuple[float, ...], ...]
    gain_bits: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """Log-probability of a whole answer in nats, and whether greedy decoding would give exactly this answer."""

    logprob: float
    exact: bool


def needle_in_haystack(
    model: Decoder,
    trials: Sequence[NeedleTrial],
    *,
    batch_tokens: int = 8192,
    progress: Progress = NULL_PROGRESS,
) -> NeedleResult:
    """Measure all trials; those of equal length are batched, at most ``batch_tokens`` tokens at once.

    Raises:
        ContextError: a prompt with its answer exceeds the model's context.
    """
    answers = [trial.answer_ids for trial in trials]
    prompts = [trial.prompt_ids for trial in trials] + [trial.blank_prompt_ids for trial in trials]
    scored = score_answers(model, prompts, answers * 2, batch_tokens=batch_tokens, progress=progress)
    found, blank = scored[: len(trials)], scored[len(trials) :]
    lengths, depths = sorted({t.length for t in trials}), sorted({t.depth for t in trials})
    cells: dict[tuple[int, float], list[tuple[float, float]]] = {}
    for trial, with_needle, without in zip(trials, found, blank, strict=True):
        gain = (with_needle.logprob - without.logprob) / math.log(2) / len(trial.answer_ids)
        cells.setdefault((trial.length, trial.depth), []).append((float(with_needle.exact), gain))

    def table(part: int) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(_mean([pair[part] for pair in cells[n, d]]) for d in depths) for n in lengths)

    return NeedleResult(lengths=tuple(lengths), depths=tuple(depths), accuracy=table(0), gain_bits=table(1))


def score_answers(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 8192,
    progress: Progress = NULL_PROGRESS,
) -> list[AnswerScore]:
    """Score each answer after its prompt in one forward pass.

    ``exact`` holds where every answer token is the argmax after the tokens before it.
    """
    by_shape: dict[tuple[int, int], list[int]] = {}
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        by_shape.setdefault((len(prompt), len(answer)), []).append(index)
    results: dict[int, AnswerScore] = {}
    with eval_mode(model), torch.inference_mode():
        for (prompt_tokens, answer_tokens), indices in sorted(by_shape.items()):
            size = max(1, batch_tokens // (prompt_tokens + answer_tokens))
            for start in range(0, len(indices), size):
                batch = indices[start : start + size]
                rows = [[*prompts[i], *answers[i]] for i in batch]
                for index, answered in zip(batch, _score(model, rows, answer_tokens), strict=True):
                    results[index] = answered
                progress.update(len(results), len(prompts), "prompts")
    return [results[index] for index in range(len(prompts))]


def _score(model: Decoder, rows: Sequence[Sequence[int]], answer_tokens: int) -> list[AnswerScore]:
    tokens_BT = torch.tensor(rows, device=model.device)
    hidden_BAD = model(tokens_BT[:, :-1]).hidden_BTD[:, -answer_tokens:]
    logits_BAV: Tensor = model.logits(hidden_BAD)
    answers_BA = tokens_BT[:, -answer_tokens:]
    logprob_B = logits_BAV.log_softmax(-1).gather(-1, answers_BA[..., None]).sum((1, 2))
    exact_B = (logits_BAV.argmax(-1) == answers_BA).all(1)
    return [AnswerScore(logprob, exact) for logprob, exact in zip(logprob_B.tolist(), exact_B.tolist(), strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
