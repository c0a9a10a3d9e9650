"""Sums over a step's micro-batches: losses, expert counts, and statistics of logged steps.

X sources.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fathom.train.group import ALONE, Group


@dataclass(frozen=True, slots=True)
class Observation:
    """Statistics of logged steps. ``counts_LE`` and ``dropped`` are None for dense models.

    ``nats_X`` and ``tokens_X`` sum the language-model loss and count the tokens of each known source; ``dropped`` is
    the share of pairs of token and expert that were dropped for lack of capacity.
    """

    counts_LE: Tensor | None
    dropped: float | None
    nats_X: list[float]
    tokens_X: list[int]


@dataclass(frozen=True, slots=True)
class Gradients:
    """The losses behind the gradients that are now in the parameters, over the whole batch.

    ``objective`` is what the stage minimises (nats per token, of a language model); balance and MTP losses join it.
    ``sums`` are what the objective wants logged. ``counts_LE`` holds how often each expert was chosen, by each mixture
    of experts that ran, when the bias update or a log needs it.
    """

    objective: float
    balance: float
    mtp: float
    norm: Tensor
    norm_value: float
    counts_LE: Tensor | None
    observation: Observation | None
    sums: Mapping[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """What was minimised: objective, balance and MTP losses together."""
        return self.objective + self.balance + self.mtp

    @property
    def finite(self) -> bool:
        """Whether both loss and gradient norm are finite."""
        return math.isfinite(self.loss) and math.isfinite(self.norm_value)


class MicroBatchSums:
    """Sums over micro-batches, on the device: read once, at the end."""

    def __init__(self, device: torch.device, sources: int, layers: int, experts: int) -> None:
        self.losses_3 = torch.zeros(3, device=device)
        self.layers = 0
        self.counts_LE = torch.zeros(layers, experts, dtype=torch.int64, device=device)
        self.dropped = torch.zeros((), dtype=torch.int64, device=device)
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.nats_X = torch.zeros(sources + 1, dtype=wide, device=device)
        self.tokens_X = torch.zeros(sources + 1, dtype=torch.int64, device=device)
        self.objective_sums: dict[str, Tensor] = {}

    def reduce(self, group: Group) -> None:
        """Add up what the ranks have, so that every rank holds the whole batch's sums."""
        if group is ALONE:
            return
        layers = torch.tensor(self.layers)
        self.layers = int(group.max(layers))
        self.losses_3 = group.sum_parts(self.losses_3)
        self.counts_LE, self.dropped = group.sum_parts(self.counts_LE), group.sum_parts(self.dropped)
        self.nats_X, self.tokens_X = group.sum_parts(self.nats_X), group.sum_parts(self.tokens_X)
        self.objective_sums = {name: group.sum_parts(value) for name, value in self.objective_sums.items()}

    def add(self, losses_3: Tensor, sums: Mapping[str, Tensor]) -> None:
        """Add one micro-batch's losses and the objective's own sums."""
        self.losses_3 += losses_3
        self.add_sums(sums)

    def add_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Add sums that are logged."""
        for name, value in sums.items():
            self.objective_sums[name] = self.objective_sums[name] + value if name in self.objective_sums else value
