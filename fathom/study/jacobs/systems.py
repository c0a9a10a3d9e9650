"""The paper's nets, many runs at once, and its plain gradient descent.

Dimensions: R runs (independent initial weights), N cases, I inputs with a constant 1, E experts, H hidden units,
O outputs (one logistic unit: which vowel of its pair).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fathom.study.jacobs.losses import Loss, blend
from fathom.study.jacobs.vowels import Cases

INPUTS = 3


class System(Protocol):
    """Nets of one kind; a net without experts answers as a single one."""

    parameters: tuple[Tensor, ...]

    def __call__(self, formants_N2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the experts' outputs (R, N, E, O) and the logarithms of their proportions (R, N, E)."""
        ...


class Mixture:
    """Experts with one linear decision line each, and a softmax gate: 6 weights an expert, its gate's included."""

    def __init__(self, runs: int, experts: int, scale: float, generator: torch.Generator) -> None:
        self.parameters = _small((runs, INPUTS, experts), (runs, INPUTS, experts), scale=scale, generator=generator)

    def __call__(self, formants_N2: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs and log proportions."""
        expert_RIE, gate_RIE = self.parameters
        x_NI = with_constant(formants_N2)
        answers_RNE = torch.sigmoid(_one_product(x_NI, expert_RIE))
        return answers_RNE.unsqueeze(-1), torch.log_softmax(_one_product(x_NI, gate_RIE), dim=-1)


class Backprop:
    """One hidden layer of logistic units: 4 weights a hidden unit and one more."""

    def __init__(self, runs: int, hidden: int, scale: float, generator: torch.Generator) -> None:
        self.parameters = _small((runs, INPUTS, hidden), (runs, hidden + 1, 1), scale=scale, generator=generator)

    def __call__(self, formants_N2: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs and log proportions."""
        hidden_RIH, output_RHO = self.parameters
        hidden_RNH = with_constant(torch.sigmoid(_one_product(with_constant(formants_N2), hidden_RIH)))
        outputs_RNO = torch.sigmoid(hidden_RNH @ output_RHO)
        return outputs_RNO.unsqueeze(2), torch.zeros_like(outputs_RNO)


@dataclass(frozen=True, slots=True)
class TrainingHistory:
    """The history of a training.

    ``reached_R`` is the first epoch whose mean squared error of the blend met the criterion, -1 where none did;
    ``errors_TR`` that error at every epoch; ``at_criterion`` the weights of that epoch, or the last ones.
    """

    reached_R: Tensor
    errors_TR: Tensor
    at_criterion: tuple[Tensor, ...]


def descend(
    system: System,
    loss: Loss,
    cases: Cases,
    *,
    step: float,
    epochs: int,
    criterion: float,
    stop_when_reached: bool = False,
    heartbeat: Callable[[], None] = lambda: None,
) -> TrainingHistory:
    """Take one step of ``step`` times the gradient of the mean error an epoch, in place: no momentum, whole batches."""
    runs = system.parameters[0].shape[0]
    reached_R, errors = torch.full((runs,), -1), []
    kept = tuple(parameter.detach().clone() for parameter in system.parameters)
    for epoch in range(epochs):
        if epoch % 50 == 0:
            heartbeat()
        outputs, log_gates = system(cases.formants_N2)
        with torch.no_grad():
            error_R = (cases.target_N1 - blend(outputs, log_gates)).square().sum(-1).mean(-1)
            errors.append(error_R)
            new_R = (error_R <= criterion) & (reached_R < 0)
            reached_R[new_R] = epoch
            _keep(kept, system.parameters, new_R)
        if stop_when_reached and bool((reached_R >= 0).all()):
            break
        total = loss(outputs, log_gates, cases.target_N1).mean(-1).sum()
        for parameter, slope in zip(system.parameters, torch.autograd.grad(total, system.parameters), strict=True):
            parameter.data.sub_(slope, alpha=step)
    _keep(kept, system.parameters, reached_R < 0)
    return TrainingHistory(reached_R, torch.stack(errors), kept)


def with_constant(values: Tensor) -> Tensor:
    """Append a column of ones."""
    return torch.cat((values, torch.ones_like(values[..., :1])), dim=-1)


def set_weights(system: System, weights: tuple[Tensor, ...]) -> None:
    """Set a system's weights."""
    for parameter, weight in zip(system.parameters, weights, strict=True):
        parameter.data.copy_(weight)


def _one_product(x_NI: Tensor, weights_RIF: Tensor) -> Tensor:
    """The runs' products with the same inputs, (R, N, F), as one matrix product."""
    runs, inputs, features = weights_RIF.shape
    wide_NF = x_NI @ weights_RIF.transpose(0, 1).reshape(inputs, runs * features)
    return wide_NF.view(-1, runs, features).transpose(0, 1)


def _keep(kept: tuple[Tensor, ...], parameters: tuple[Tensor, ...], rows_R: Tensor) -> None:
    for old, new in zip(kept, parameters, strict=True):
        old[rows_R] = new.detach()[rows_R]


def _small(*shapes: tuple[int, ...], scale: float, generator: torch.Generator) -> tuple[Tensor, ...]:
    def tensors() -> Iterator[Tensor]:
        for shape in shapes:
            yield (torch.randn(shape, generator=generator) * scale).requires_grad_()

    return tuple(tensors())
