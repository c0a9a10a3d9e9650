"""What a GPU computes in its own way, against the CPU's results: `make gpu`; the ordinary suite runs it on the CPU.

On a CUDA device PyTorch raises wherever the host waits for it within ``no_waits``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from fathom.engine.sampling.device_draw import draw_on_device
from fathom.engine.sampling.draw import try_draw
from fathom.kernels import attention, rms_norm
from fathom.kernels.device_attention import device_attention
from fathom.kernels.experts import grouped_swiglu
from fathom.kernels.grouped_experts import grouped_swiglu_on_device
from fathom.model.build import build
from fathom.model.forward_options import PackedSequences
from fathom.train.optimizer import make_optimizer
from fathom.train.step import StepRunner
from tests.engine.sampling.test_device_draw import PARAMS, VOCAB, rows_of
from tests.kernels.test_kernels_device_attention import CASES, inputs
from tests.kernels.test_kernels_experts import make
from tests.train.accumulate import take
from tests.train.conftest import MODEL, TRAIN, FakeLoader

pytestmark = pytest.mark.gpu
SPEC = replace(MODEL, max_position_embeddings=64, initializer_range=0.1)
SQUARE = [case for case in CASES if not (case[-1] == "causal" and case[2] < case[3])]


@contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    """Let PyTorch raise where the host would wait for a CUDA device."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def near(actual: torch.Tensor, expected: torch.Tensor, limit: float) -> None:
    difference = (actual.detach().cpu().double() - expected.detach().double()).norm()
    assert difference <= limit * expected.double().norm()


@pytest.mark.parametrize("dropped", [False, True])
def test_experts(device: torch.device, dropped: bool) -> None:
    parts = make(tokens=64, num_experts=40, chosen=2, hidden=32, width=16, dtype=torch.bfloat16)
    x, indices, weights, gate_up, down = parts
    kept = torch.rand(indices.shape, generator=torch.Generator().manual_seed(1)) < 0.7 if dropped else None
    here = [each.clone().requires_grad_() for each in (x, weights, gate_up, down)]
    there = [each.to(device).requires_grad_() for each in (x, weights, gate_up, down)]
    expected = grouped_swiglu(here[0], indices, *here[1:], kept)
    indices, kept = indices.to(device), None if kept is None else kept.to(device)
    with no_waits(device):
        actual = grouped_swiglu_on_device(there[0], indices, *there[1:], kept)
        found = torch.autograd.grad(actual, there, torch.ones_like(actual))
    near(actual, expected, 0.02)
    for got, wanted in zip(found, torch.autograd.grad(expected, here, torch.ones_like(expected)), strict=True):
        near(got, wanted, 0.03)


@pytest.mark.parametrize("case", SQUARE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention(device: torch.device, case: tuple[Any, ...], dtype: torch.dtype) -> None:
    q, k, v, mask = inputs(case, dtype)
    causal, there = case[-1] == "causal", [each.detach().to(device).requires_grad_() for each in (q, k, v)]
    expected = attention(q, k, v, mask_B1TS=mask, causal=causal, scale=0.3)
    mask = None if mask is None else mask.to(device)
    with no_waits(device):
        actual = device_attention(there[0], there[1], there[2], mask_B1TS=mask, causal=causal, scale=0.3)
        found = torch.autograd.grad(actual, there, torch.ones_like(actual))
    limit = 0.03 if dtype == torch.bfloat16 else 1e-4
    near(actual, expected, limit)
    for got, wanted in zip(found, torch.autograd.grad(expected, (q, k, v), torch.ones_like(expected)), strict=True):
        near(got, wanted, limit)


def test_norm(device: torch.device) -> None:
    x, weight = (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) for shape in ((9, 64), (64,)))
    near(rms_norm(x.bfloat16().to(device), weight.bfloat16().to(device), 1e-6), rms_norm(x, weight, 1e-6), 0.01)


def test_drawing(device: torch.device) -> None:
    logits = torch.randn(len(PARAMS), VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    expected, actual = try_draw(logits, rows_of(PARAMS, 0)), draw_on_device(logits.to(device), rows_of(PARAMS, 0), None)
    assert [getattr(each, "token_id", each) for each in actual] == [
        getattr(each, "token_id", each) for each in expected
    ]


@pytest.mark.parametrize("prefixes", [None, (0, 0, 0, 0), (0, 5, 5, 0)])
def test_decoder_in_bfloat16(device: torch.device, prefixes: tuple[int, ...] | None) -> None:
    packed = None if prefixes is None else PackedSequences((20, 7, 7, 14), prefixes)
    tokens = torch.randint(64, (2, 24) if packed is None else (1, 48), generator=torch.Generator().manual_seed(0))
    expected = build(SPEC, seed=0).train()(tokens, packed=packed).hidden_BTD
    there = build(SPEC, seed=0, dtype=torch.bfloat16, device=device).train()
    tokens = tokens.to(device)
    there(tokens, packed=packed)  # tables are made, kernels loaded
    with no_waits(device):
        actual = there(tokens, packed=packed).hidden_BTD
        actual.float().sum().backward()
    near(actual, expected, 0.2)  # some tokens meet other experts
    assert all(parameter.grad is not None for name, parameter in there.named_parameters() if name.startswith("layers"))


def test_training_steps(device: torch.device) -> None:
    found = []
    for where in (torch.device("cpu"), device):
        model = build(SPEC, seed=0, device=where).train()
        runner = StepRunner(model, make_optimizer(model, TRAIN.optimizer), TRAIN, sources=2)
        loader, losses = FakeLoader(), []
        for number in (1, 2, 3):
            gradients = take(runner, loader.next(4), number, observe=True)
            runner.apply(gradients, 1e-3)
            losses.append(gradients.loss)
        found.append(losses)
    assert found[1] == pytest.approx(found[0], rel=0.02)
