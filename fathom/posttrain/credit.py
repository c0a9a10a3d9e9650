"""Turns judgements of answers into an advantage for each token.

Z steps of the answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.posttrain.losses import TokenAdvantages, group_advantages, process_advantages
from fathom.posttrain.prompts import PromptFormatter
from fathom.posttrain.rewards.base import Judgement
from fathom.posttrain.rollout import Rollout
from fathom.spec.posttrain import AdvantageSpec

_OUTCOME = ""
"""What the outcome is called among the names of step rewards, none of which is empty."""


def token_advantages(
    rollouts: Sequence[Rollout],
    judgements: Sequence[Judgement],
    prompt_formatter: PromptFormatter,
    spec: AdvantageSpec,
    changes_B: Tensor | None = None,
) -> TokenAdvantages:
    """Compare answers, or their steps, with those of their group, and give every token its advantage, float64.

    Outcome supervision spreads the advantage of an answer's ``total`` over its tokens. Process supervision puts each
    step's reward at the token that completes the step, an answer's ``outcome`` at its last, and has a token earn all
    that stand at it or later, as ``process_advantages`` says (DeepSeekMath §4.1.3). ``changes_B`` are added to totals
    or outcomes beforehand: a penalty, of answers without an outcome too.

    Raises:
        DataError: a reward is not finite, or a step ends outside its answer.
    """
    groups_B = torch.tensor([rollout.group for rollout in rollouts], dtype=torch.int64)
    lengths_B = torch.tensor([len(rollout.answer_ids) for rollout in rollouts], dtype=torch.int64)
    changes = [0.0] * len(rollouts) if changes_B is None else changes_B.tolist()
    if spec.supervision == "outcome":
        totals_B = _wide([judged.total + change for judged, change in zip(judgements, changes, strict=True)])
        found = group_advantages(totals_B, groups_B, spec)
        values_N = found.values_B.repeat_interleave(lengths_B)
        return TokenAdvantages(values_N, found.varied_B, found.zero_variance_groups, found.groups)
    names = sorted({name for judged in judgements for name in judged.steps})
    kinds = {name: kind for kind, name in enumerate([_OUTCOME, *names])}
    rewards: list[float] = []
    ends: list[int] = []
    kinds_of: list[int] = []
    starts = (lengths_B.cumsum(0) - lengths_B).tolist()
    for rollout, judged, change, start in zip(rollouts, judgements, changes, starts, strict=True):
        for name, end, value in _token_rewards(
            rollout, judged, prompt_formatter, None if changes_B is None else change
        ):
            rewards.append(value)
            ends.append(start + end)
            kinds_of.append(kinds[name])
    return process_advantages(
        _wide(rewards),
        torch.tensor(ends, dtype=torch.int64),
        groups_B,
        torch.repeat_interleave(torch.arange(len(rollouts)), lengths_B),
        spec,
        kinds_Z=torch.tensor(kinds_of, dtype=torch.int64),
    )


def _token_rewards(
    rollout: Rollout, judged: Judgement, prompt_formatter: PromptFormatter, change: float | None
) -> list[tuple[str, int, float]]:
    """An answer's rewards by name, each with the index of the token it stands at; the outcome stands at the last."""
    steps = [(name, step) for name, scored in judged.steps.items() for step in scored]
    tokens = prompt_formatter.token_indices(rollout.answer_ids, [step.end for _, step in steps]) if steps else []
    placed = [(name, token, step.value) for (name, step), token in zip(steps, tokens, strict=True)]
    if judged.outcome is not None or change is not None:
        placed.append((_OUTCOME, len(rollout.answer_ids) - 1, (judged.outcome or 0.0) + (change or 0.0)))
    return placed


def _wide(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
