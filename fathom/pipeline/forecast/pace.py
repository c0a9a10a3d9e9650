"""How fast this machine trains a model: by a few steps on random tokens, or arithmetic where it is too large."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from fathom.kernels.products import product_choice
from fathom.model.build import build
from fathom.pipeline.forecast.totals import free_memory
from fathom.plan.flops import training_flops_per_token
from fathom.plan.memory import training_memory
from fathom.spec.model import ModelSpec
from fathom.spec.train import UpdateSpec
from fathom.train.measure import peak_flops
from fathom.train.micro_batch import split
from fathom.train.optimizer import make_optimizer
from fathom.train.step import StepRunner

UTILISATION = 0.25
"""Share of the peak of matrix products that training reaches where nothing was measured: between a half and double."""
MOST_SECONDS = 4.0
"""For measuring one pace; where the estimate is above twice as many, nothing is measured."""
_ROUNDS = 3


def training_peak(device: torch.device) -> float | None:
    """Return ``peak_flops`` of what training multiplies in by default: bfloat16 on a GPU, else what is faster."""
    narrow = device.type != "cpu" or product_choice().bfloat16
    return peak_flops(device, torch.bfloat16 if narrow else torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds that training takes for each token of a micro-batch, and for each update of the weights."""

    token: float
    update: float
    measured: bool

    def seconds(self, tokens: float, updates: float) -> float:
        """Return the seconds of training on so many tokens with so many updates."""
        return tokens * self.token + updates * self.update


def training_pace(
    spec: ModelSpec,
    train: UpdateSpec,
    *,
    sequences: int,
    length: int,
    device: torch.device,
    peak: float | None,
    measure: bool = True,
) -> Pace | None:
    """Time micro-batches of a model with random weights; estimate where they would take long or more memory than free.

    ``peak`` is ``training_peak`` of the device; without ``measure`` no step is taken. None where the peak is unknown
    and nothing could be measured.
    """
    length = min(length, spec.max_position_embeddings)
    fits = training_memory(spec, tokens=sequences * length).total < free_memory(device) // 2
    if peak is None:
        return _measured(spec, train, sequences, length, device) if fits and measure else None
    estimate = training_flops_per_token(spec, length) / (UTILISATION * peak)
    while sequences > 1 and estimate * sequences * length * _ROUNDS > MOST_SECONDS:
        sequences //= 2
    if not (fits and measure) or estimate * sequences * length * _ROUNDS > 2 * MOST_SECONDS:
        return Pace(token=estimate, update=0.0, measured=False)
    return _measured(spec, train, sequences, length, device)


def _measured(spec: ModelSpec, train: UpdateSpec, sequences: int, length: int, device: torch.device) -> Pace:
    model = build(spec, device=device, seed=0).train()
    runner = StepRunner(model, make_optimizer(model, train.optimizer), train)
    tokens: list[float] = []
    updates: list[float] = []
    begun = time.perf_counter()
    for number in range(1, _ROUNDS + 2):
        if len(tokens) > 1 and time.perf_counter() - begun > MOST_SECONDS:
            break
        started = time.perf_counter()
        micros = split(_random_batch(spec, sequences, length, number), sequences, length, device)
        gradients = runner.accumulate(micros, sequences, number, observe=False)
        computed = time.perf_counter()
        runner.apply(gradients, 0.0)
        _ = next(model.parameters()).detach().sum().item()  # waits for the device
        tokens.append((computed - started) / (sequences * length))
        updates.append(time.perf_counter() - computed)
    return Pace(token=min(tokens[1:]), update=min(updates[1:]), measured=True)


@dataclass(frozen=True, slots=True)
class _Rows:
    tokens_BT1: torch.Tensor
    source_B: torch.Tensor
    images: None = None
    targets_BT: None = None
    ends_BT: None = None


def _random_batch(spec: ModelSpec, sequences: int, length: int, number: int) -> _Rows:
    generator = torch.Generator().manual_seed(number)
    tokens_BT1 = torch.randint(spec.vocab_size, (sequences, length + 1), generator=generator)
    return _Rows(tokens_BT1, torch.zeros(sequences, dtype=torch.int64))
