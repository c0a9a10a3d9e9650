"""Rollouts: answers sampled from the model that is trained, with the log-probabilities they were sampled with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fathom.data.packed import PackedBatch
from fathom.posttrain.prompts import PromptFormatter
from fathom.spec.problem import Problem
from fathom.spec.rollout import RolloutSpec
from fathom.spec.sampling import Completion, Sampler, SamplingParams
from fathom.spec.targets import IGNORE_INDEX
from fathom.train.step import counter_seed


class RolloutSampler(Sampler, Protocol):
    """A sampler whose model is updated between calls: the engine, over the weights that are trained."""

    def forget(self) -> None:
        """Empty the prefix cache, which was computed with former weights."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One answer to one problem; answers of one ``group`` share their prompt.

    ``answer_ids`` end with the token that ended the answer, where one was drawn, and ``logprobs`` are theirs as they
    were drawn, at temperature 1. ``routing`` is what the sampler recorded of experts, if it was asked to.
    """

    problem: Problem
    group: int
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finished: bool
    routing: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Tokens that a trainer reads: all but the last."""
        return len(self.prompt_ids) + len(self.answer_ids) - 1


def sample_rollouts(
    sampler: Sampler,
    prompt_formatter: PromptFormatter,
    problems: Sequence[Problem],
    spec: RolloutSpec,
    *,
    seed: int,
    context: int,
    first_group: int = 0,
) -> list[Rollout]:
    """Draw ``group_size`` answers to each problem, those of one problem next to each other.

    The n-th answer of a call draws with the n-th seed after ``seed``'s, whatever is in its batch. A problem whose
    prompt leaves no room in ``context`` gets no answers, and neither does one that the sampler failed at.
    """
    prompts = [prompt_formatter.encode(problem) for problem in problems]
    asked = [(index, copy) for index in range(len(problems)) for copy in range(spec.group_size)]
    asked = [(index, copy) for index, copy in asked if len(prompts[index]) < context]
    params = [
        SamplingParams(
            max_tokens=min(spec.max_tokens, context - len(prompts[index])),
            temperature=spec.temperature,
            seed=counter_seed(seed, (first_group + index) * spec.group_size + copy),
        )
        for index, copy in asked
    ]
    completions = sampler.sample(
        [prompts[index] for index, _ in asked],
        params,
        stop_checkers=[prompt_formatter.stop_checker() for _ in asked],
    )
    return [
        _rollout(prompt_formatter, problems[index], first_group + index, prompts[index], completion)
        for (index, _), completion in zip(asked, completions, strict=True)
        if completion.finish_reason != "error" and (completion.token_ids or completion.stop_token is not None)
    ]


def _rollout(
    prompt_formatter: PromptFormatter, problem: Problem, group: int, prompt_ids: Sequence[int], completion: Completion
) -> Rollout:
    ids, logprobs = list(completion.token_ids), list(completion.logprobs)
    if completion.stop_token is not None:
        ids.append(completion.stop_token.token_id)
        logprobs.append(completion.stop_token.logprob)
    routing = completion.routing
    return Rollout(
        problem=problem,
        group=group,
        prompt_ids=tuple(prompt_ids),
        answer_ids=tuple(ids),
        logprobs=tuple(logprobs),
        text=prompt_formatter.read(ids),
        finished=completion.finish_reason == "stop",
        routing=routing if isinstance(routing, Tensor) else None,
    )


def packing_order(rollouts: Sequence[Rollout]) -> list[int]:
    """Return the answers' indices in packing order: a group's together, those of like length next to each other.

    A group's answers then share their prompt, and those of equal length attend together.
    """
    return sorted(range(len(rollouts)), key=lambda index: (rollouts[index].group, rollouts[index].tokens))


def pack_rollouts(rollouts: Sequence[Rollout], columns: Mapping[str, Sequence[Sequence[float]]]) -> PackedBatch:
    """Pack prompts with their answers in the order given; only answers are targets.

    ``columns`` hold, for each answer, one number a token of it; prompts get 0. ``row`` says which answer a token
    belongs to, and ``routes`` holds the experts that were recorded, -1 where none were. Neighbours of one group share
    their prompt but for its last token, behind which each learns another.
    """
    tokens: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    shared_prefix_lengths: list[int] = []
    for index, rollout in enumerate(rollouts):
        tokens += [*rollout.prompt_ids, *rollout.answer_ids[:-1]]
        targets += [IGNORE_INDEX] * (len(rollout.prompt_ids) - 1) + list(rollout.answer_ids)
        rows += [index] * rollout.tokens
        same = index > 0 and rollouts[index - 1].prompt_ids == rollout.prompt_ids
        shared_prefix_lengths.append(len(rollout.prompt_ids) - 1 if same else 0)
    laid = {name: _packed_column(rollouts, column) for name, column in columns.items()}
    routed = [rollout.routing for rollout in rollouts if rollout.routing is not None]
    if len(routed) == len(rollouts):
        laid["routes"] = torch.cat([_truncated_routing(rollout) for rollout in rollouts])
    return PackedBatch(
        tokens_N=torch.tensor(tokens),
        targets_N=torch.tensor(targets),
        lengths=tuple(rollout.tokens for rollout in rollouts),
        columns={"row": torch.tensor(rows), **laid},
        shared_prefix_lengths=tuple(shared_prefix_lengths),
    )


def _packed_column(rollouts: Sequence[Rollout], column: Sequence[Sequence[float]]) -> Tensor:
    laid: list[float] = []
    for rollout, values in zip(rollouts, column, strict=True):
        laid += [0.0] * (len(rollout.prompt_ids) - 1)
        laid += values
    return torch.tensor(laid)


def _truncated_routing(rollout: Rollout) -> Tensor:
    """Return the recorded experts of the tokens a trainer reads: all but the answer's last."""
    assert rollout.routing is not None
    return rollout.routing[: rollout.tokens]
