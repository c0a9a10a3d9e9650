"""Training one model and measuring its perplexity and its experts' load."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.study.shazeer.corpus import Corpus, windows
from fathom.study.shazeer.gating import cv_squared
from fathom.study.shazeer.layer import Layout
from fathom.study.shazeer.model import MoELanguageModel, cross_entropy


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings shared by every model of the experiment."""

    vocabulary: int = 1024
    width: int = 64
    hidden: int = 32
    dropout: float = 0.1
    steps: int = 600
    batch: int = 32
    length: int = 32
    learning_rate: float = 0.01
    warmup: int = 40
    evaluation_batches: int = 40


@dataclass(frozen=True, slots=True)
class Measured:
    """``perplexity`` of a held-out token without noise; the rest with noise, as in training, over the same windows."""

    perplexity: float
    cv_importance: float
    cv_load: float
    max_over_mean_load: float
    load: list[float]
    losses: list[float]
    parameters: int


def train(
    corpus: Corpus,
    layout: Layout,
    weights: tuple[float, float],
    settings: Settings,
    seed: int,
    tick: Callable[[int], None],
) -> Measured:
    """Train with Adam (linear warm-up, then the inverse square root of the step) and measure.

    ``weights`` are those of the importance and of the load loss. Models of one seed see the same windows.
    """
    torch.manual_seed(seed)  # initial weights and dropout
    model = MoELanguageModel(corpus.vocabulary, settings.width, settings.hidden, layout, settings.dropout)
    data, noise = (torch.Generator().manual_seed(2 * seed + stream) for stream in (0, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    losses = []
    for step in range(1, settings.steps + 1):
        tick(step - 1)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(step / settings.warmup, math.sqrt(settings.warmup / step))
        tokens_BT, targets_BT = windows(corpus.train, settings.batch, settings.length, data)
        logits_BTV, gates = model(tokens_BT, noise)
        loss = cross_entropy(logits_BTV, targets_BT)
        losses.append(loss.item())
        for weight, values_E in zip(weights, (gates.importance_E, gates.load_E), strict=True):
            if weight:
                loss = loss + weight * cv_squared(values_E)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return _measure(model, corpus, settings, seed, losses)


@torch.no_grad()
def _measure(model: MoELanguageModel, corpus: Corpus, settings: Settings, seed: int, losses: list[float]) -> Measured:
    model.eval()
    data, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    surprise, figures, load_E = 0.0, torch.zeros(3), torch.zeros(())
    for _ in range(settings.evaluation_batches):
        tokens_BT, targets_BT = windows(corpus.held_out, settings.batch, settings.length, data)
        surprise += cross_entropy(model(tokens_BT)[0], targets_BT).item()
        gates = model(tokens_BT, noise)[1]
        figures += torch.stack((_variation(gates.importance_E), _variation(gates.load_E), _peak(gates.load_E)))
        load_E = load_E + gates.load_E
    figures /= settings.evaluation_batches
    return Measured(
        perplexity=math.exp(surprise / settings.evaluation_batches),
        cv_importance=figures[0].item(),
        cv_load=figures[1].item(),
        max_over_mean_load=figures[2].item(),
        load=(load_E / load_E.mean()).tolist(),
        losses=losses,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _variation(values_E: Tensor) -> Tensor:
    return cv_squared(values_E).sqrt()


def _peak(load_E: Tensor) -> Tensor:
    return load_E.max() / load_E.mean()
