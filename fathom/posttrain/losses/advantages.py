"""Rewards of the answers to one prompt, or of their steps, compared with each other (DeepSeekMath §4.1).

X groups, Z steps, Y values that are either B or Z, O kinds of rewards in groups.
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
    values_B, varied_X = _normalised(_wide(rewards_B), group_B, groups, spec)
    return Advantages(values_B, varied_X[group_B], int((~varied_X).sum()), groups)


def process_advantages(
    step_rewards_Z: Tensor,
    step_ends_Z: Tensor,
    groups_B: Tensor,
    row_N: Tensor,
    spec: AdvantageSpec = _PROCESS,
    *,
    kinds_Z: Tensor | None = None,
) -> TokenAdvantages:
    """Process supervision: a token's advantage sums the normalised rewards of all steps that end at it or later.

    ``step_ends_Z`` holds the index in N of each step's last token, and rewards are normalised over all steps of a
    group (DeepSeekMath §4.1.3). Answers are packed; one without steps gets 0.

    ``kinds_Z`` names by any integer which reward each is of. Rewards of several kinds are compared with the mean of
    their own in the group, else a right step worth 1 would speak against an answer where a right result is worth 2;
    all are divided by the root of the sum of the kinds' variances, which one kind alone does not change.

    Raises:
        DataError: a reward is not finite, or an answer's tokens do not lie together.
    """
    checks.same_length(step_rewards_Z=step_rewards_Z, step_ends_Z=step_ends_Z, kinds_Z=kinds_Z)
    checks.finite("step_rewards_Z", step_rewards_Z)
    if step_ends_Z.numel() and not 0 <= int(step_ends_Z.min()) <= int(step_ends_Z.max()) < row_N.shape[0]:
        span = f"{int(step_ends_Z.min())} to {int(step_ends_Z.max())}"
        raise DataError(f"step_ends_Z: {span} leave the {row_N.shape[0]} tokens; give indices of tokens")
    group_B, groups = answers.dense_ids(groups_B)
    kind_Z, kinds = answers.dense_ids(torch.zeros_like(step_ends_Z) if kinds_Z is None else kinds_Z)
    values_Z, varied_X = _normalised(_wide(step_rewards_Z), group_B[row_N[step_ends_Z]], groups, spec, kind_Z, kinds)
    ends_N = values_Z.new_zeros(row_N.shape[0]).index_add_(0, step_ends_Z, values_Z)
    values_N = _reward_to_go(ends_N, row_N)
    return TokenAdvantages(values_N, varied_X[group_B], int((~varied_X).sum()), groups)


def _reward_to_go(values_N: Tensor, row_N: Tensor) -> Tensor:
    """Sum of each token and those after it in its answer."""
    starts = ((row_N[1:] != row_N[:-1]).nonzero()[:, 0] + 1).tolist()
    if len(starts) >= max(1, answers.dense_ids(row_N)[1]):
        raise DataError("row_N: an answer's tokens do not lie together; lay the answers end to end")
    return torch.cat([piece_T.flip(0).cumsum(0).flip(0) for piece_T in torch.tensor_split(values_N, starts)])


def _wide(values_Y: Tensor) -> Tensor:
    return values_Y.to(torch.promote_types(values_Y.dtype, torch.float32))


def _normalised(
    values_Y: Tensor,
    group_Y: Tensor,
    groups: int,
    spec: AdvantageSpec,
    kind_Y: Tensor | None = None,
    kinds: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return the values as those of their kind in their group see them, and which groups have any variance.

    Values that differ by rounding only are equal: dividing them by their deviation would make noise of them.
    """
    part_Y = group_Y if kind_Y is None else group_Y * kinds + kind_Y
    parts = groups * kinds
    count_O = part_Y.bincount(minlength=parts)
    mean_O = values_Y.new_zeros(parts).index_add_(0, part_Y, values_Y) / count_O.clamp(min=1)
    high_O = values_Y.new_full((parts,), -torch.inf).scatter_reduce(0, part_Y, values_Y, "amax")
    low_O = values_Y.new_full((parts,), torch.inf).scatter_reduce(0, part_Y, values_Y, "amin")
    rounding_O = 8 * torch.finfo(values_Y.dtype).eps * torch.maximum(high_O.abs(), low_O.abs())
    varied_O = high_O - low_O > rounding_O
    centred_Y = (values_Y - mean_O[part_Y]).masked_fill(~varied_O[part_Y], 0.0)
    if spec.scale == "std":
        degrees_O = (count_O - 1 if spec.std == "sample" else count_O).clamp(min=1)
        variance_O = values_Y.new_zeros(parts).index_add_(0, part_Y, centred_Y.square()) / degrees_O
        centred_Y = centred_Y / (variance_O.view(groups, kinds).sum(1).sqrt() + spec.eps)[group_Y]
        centred_Y = centred_Y.masked_fill(~varied_O[part_Y], 0.0)
    return centred_Y, varied_O.view(groups, kinds).any(1)
