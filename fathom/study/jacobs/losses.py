"""The paper's three errors of a mixture on each case, as functions of tensors.

Dimensions: ... any leading ones (runs, cases), E experts, O outputs. ``outputs`` (..., E, O) are the experts' answers,
``log_gates`` (..., E) the logarithms of the mixing proportions p, ``target`` (..., O) the desired answer d. Each
returns (...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def blend(outputs: Tensor, log_gates: Tensor) -> Tensor:
    """The mixture's answer: the sum of p o over experts, (..., O)."""
    return (log_gates.exp().unsqueeze(-1) * outputs).sum(-2)


def cooperative(outputs: Tensor, log_gates: Tensor, target: Tensor) -> Tensor:
    """||d - sum p o||^2: the error of the blend (eq 1), which every expert may repair for the others."""
    return (target - blend(outputs, log_gates)).square().sum(-1)


def competitive(outputs: Tensor, log_gates: Tensor, target: Tensor) -> Tensor:
    """Sum of p ||d - o||^2: the expected error of one expert drawn by the gate (eq 2)."""
    return (log_gates.exp() * squared_errors(outputs, target)).sum(-1)


def mixture(outputs: Tensor, log_gates: Tensor, target: Tensor) -> Tensor:
    """-log sum p exp(-1/2 ||d - o||^2): the negative log-likelihood of a mixture of Gaussians, the paper's (eq 3).

    Its slope at an expert's answer is -(d - o) times the expert's posterior share of the case (eq 5), so the expert
    that fits best learns fastest.
    """
    return -torch.logsumexp(log_gates - 0.5 * squared_errors(outputs, target), dim=-1)


def squared_errors(outputs: Tensor, target: Tensor) -> Tensor:
    """||d - o||^2 of every expert: (..., E)."""
    return (target.unsqueeze(-2) - outputs).square().sum(-1)


LOSSES: Mapping[str, Loss] = MappingProxyType(
    {"cooperative": cooperative, "competitive": competitive, "mixture": mixture}
)
