"""Rewards of the answers to one prompt, or of their steps, compared with each other (DeepSeekMath §4.1).

B answers, G groups, S steps, N tokens, M values that are either B or S, P kinds of rewards in groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.errors import DataError
from fathom.posttrain.losses import checks
from fathom.posttrain.losses import segments as answers
from fathom.spec.posttrain import AdvantageSpec

_OUTCOME = AdvantageSpec()
_PROCESS = AdvantageSpec(supervision="process")


@dataclass(frozen=True, slots=True)
class Advantages:
    """One advantage for each answer; those of groups whose rewards are all equal are 0 and False in ``varied_B``."""

    values_B: Tensor
    varied_B: Tensor
    zero_variance_groups: int
    groups: int


@dataclass(frozen=True, slots=True)
class TokenAdvantages:
    """One advantage for each token; ``varied_B`` and the counts as in ``Advantages``."""

    values_N: Tensor
    varied_B: Tensor
    zero_variance_groups: int
    groups: int


def group_advantages(rewards_B: Tensor, groups_B: Tensor, spec: AdvantageSpec = _OUTCOME) -> Advantages:
    """Outcome supervision: each reward less its group's mean, over the group's deviation (DeepSeekMath §4.1.2).

    ``groups_B`` names each answer's group by any integer; groups may have any size, and one answer alone has no
    variance.

    Raises:
        DataError: a reward is not finite.
    """
    checks.same_length(rewards_B=rewards_B, groups_B=groups_B)
    checks.finite("rewards_B", rewards_B)
    group_B, groups = answers.dense_ids(groups_B)
    values_B, varied_G = _normalised(_wide(rewards_B), group_B, groups, spec)
    return Advantages(values_B, varied_G[group_B], int((~varied_G).sum()), groups)


def process_advantages(
    step_rewards_S: Tensor,
    step_ends_S: Tensor,
    groups_B: Tensor,
    row_N: Tensor,
    spec: AdvantageSpec = _PROCESS,
    *,
    kinds_S: Tensor | None = None,
) -> TokenAdvantages:
    """Process supervision: a token's advantage sums the normalised rewards of all steps that end at it or later.

    ``step_ends_S`` holds the index in N of each step's last token, and rewards are normalised over all steps of a
    group (DeepSeekMath §4.1.3). Answers are packed; one without steps gets 0.

    ``kinds_S`` names by any integer which reward each is of. Rewards of several kinds are compared with the mean of
    their own in the group, else a right step worth 1 would speak against an answer where a right result is worth 2;
    all are divided by the root of the sum of the kinds' variances, which one kind alone does not change.

    Raises:
        DataError: a reward is not finite, or an answer's tokens do not lie together.
    """
    checks.same_length(step_rewards_S=step_rewards_S, step_ends_S=step_ends_S, kinds_S=kinds_S)
    checks.finite("step_rewards_S", step_rewards_S)
    if step_ends_S.numel() and not 0 <= int(step_ends_S.min()) <= int(step_ends_S.max()) < row_N.shape[0]:
        span = f"{int(step_ends_S.min())} to {int(step_ends_S.max())}"
        raise DataError(f"step_ends_S: {span} leave the {row_N.shape[0]} tokens; give indices of tokens")
    group_B, groups = answers.dense_ids(groups_B)
    kind_S, kinds = answers.dense_ids(torch.zeros_like(step_ends_S) if kinds_S is None else kinds_S)
    values_S, varied_G = _normalised(_wide(step_rewards_S), group_B[row_N[step_ends_S]], groups, spec, kind_S, kinds)
    ends_N = values_S.new_zeros(row_N.shape[0]).index_add_(0, step_ends_S, values_S)
    values_N = _reward_to_go(ends_N, row_N)
    return TokenAdvantages(values_N, varied_G[group_B], int((~varied_G).sum()), groups)


def _reward_to_go(values_N: Tensor, row_N: Tensor) -> Tensor:
    """Sum of each token and those after it in its answer."""
    starts = ((row_N[1:] != row_N[:-1]).nonzero()[:, 0] + 1).tolist()
    if len(starts) >= max(1, answers.dense_ids(row_N)[1]):
        raise DataError("row_N: an answer's tokens do not lie together; lay the answers end to end")
    return torch.cat([piece_T.flip(0).cumsum(0).flip(0) for piece_T in torch.tensor_split(values_N, starts)])


def _wide(values_M: Tensor) -> Tensor:
    return values_M.to(torch.promote_types(values_M.dtype, torch.float32))


def _normalised(
    values_M: Tensor,
    group_M: Tensor,
    groups: int,
    spec: AdvantageSpec,
    kind_M: Tensor | None = None,
    kinds: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return the values as those of their kind in their group see them, and which groups have any variance.

    Values that differ by rounding only are equal: dividing them by their deviation would make noise of them.
    """
    part_M = group_M if kind_M is None else group_M * kinds + kind_M
    parts = groups * kinds
    count_P = part_M.bincount(minlength=parts)
    mean_P = values_M.new_zeros(parts).index_add_(0, part_M, values_M) / count_P.clamp(min=1)
    high_P = values_M.new_full((parts,), -torch.inf).scatter_reduce(0, part_M, values_M, "amax")
    low_P = values_M.new_full((parts,), torch.inf).scatter_reduce(0, part_M, values_M, "amin")
    rounding_P = 8 * torch.finfo(values_M.dtype).eps * torch.maximum(high_P.abs(), low_P.abs())
    varied_P = high_P - low_P > rounding_P
    centred_M = (values_M - mean_P[part_M]).masked_fill(~varied_P[part_M], 0.0)
    if spec.scale == "std":
        degrees_P = (count_P - 1 if spec.std == "sample" else count_P).clamp(min=1)
        variance_P = values_M.new_zeros(parts).index_add_(0, part_M, centred_M.square()) / degrees_P
        centred_M = centred_M / (variance_P.view(groups, kinds).sum(1).sqrt() + spec.eps)[group_M]
        centred_M = centred_M.masked_fill(~varied_P[part_M], 0.0)
    return centred_M, varied_P.view(groups, kinds).any(1)
