"""Measures of the experts' specialisation, per run.

Dimensions: R runs, N cases, E experts, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.study.jacobs.losses import blend
from fathom.study.jacobs.systems import System
from fathom.study.jacobs.vowels import Cases

USED_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Measures:
    """Each (R,), over one set of cases.

    ``accuracy`` and ``error`` (squared) are those of the blend; ``winner_accuracy`` and ``winner_error`` those of each
    case's likeliest expert alone. ``experts_per_case`` is the exponential of a case's gate entropy, averaged: 1 when
    every case belongs to one expert. ``experts_used`` counts experts whose mean share is above 2 %. Experts that only
    answer well together show a ``winner_error`` above the ``error``: their ``dependence``.
    """

    accuracy: Tensor
    error: Tensor
    winner_accuracy: Tensor
    winner_error: Tensor
    experts_per_case: Tensor
    experts_used: Tensor

    @property
    def dependence(self) -> Tensor:
        """What the winner's error exceeds the blend's by."""
        return self.winner_error - self.error


@torch.no_grad()
def measure(system: System, cases: Cases) -> Measures:
    """Measure every run of a system on some cases."""
    outputs, log_gates_RNE = system(cases.formants_N2)
    gates_RNE = log_gates_RNE.exp()
    winner_RN1 = gates_RNE.argmax(-1, keepdim=True)
    blended_RNO = blend(outputs, log_gates_RNE)
    winner_RNO = outputs.gather(2, winner_RN1.unsqueeze(-1).expand(*winner_RN1.shape, outputs.shape[-1])).squeeze(2)
    entropy_RN = -(gates_RNE * log_gates_RNE).sum(-1)
    return Measures(
        accuracy=_right(blended_RNO, cases),
        error=_error(blended_RNO, cases),
        winner_accuracy=_right(winner_RNO, cases),
        winner_error=_error(winner_RNO, cases),
        experts_per_case=entropy_RN.exp().mean(-1),
        experts_used=(gates_RNE.mean(1) > USED_SHARE).sum(-1).float(),
    )


def _right(answers_RNO: Tensor, cases: Cases) -> Tensor:
    return ((answers_RNO > 0.5) == (cases.target_N1 > 0.5)).all(-1).float().mean(-1)


def _error(answers_RNO: Tensor, cases: Cases) -> Tensor:
    return (cases.target_N1 - answers_RNO).square().sum(-1).mean(-1)
