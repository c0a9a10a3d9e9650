"""AdamW against its formula, its state by name, and clipping."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fathom.errors import CheckpointError
from fathom.model.ffn import SwiGLU
from fathom.spec.train import AdamWSpec
from fathom.train.optimizer import (
    clip_gradients,
    gradient_norm,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
)

SPEC = AdamWSpec(lr=0.1)


class Small(nn.Module):
    def __init__(self, *, swapped: bool = False) -> None:
        super().__init__()
        names = ["linear", "other", "unused"]
        for name in reversed(names) if swapped else names:
            self.add_module(name, nn.Linear(3, 2))


def step(model: nn.Module, optimizer: torch.optim.AdamW, seed: int) -> None:
    for name, parameter in sorted(model.named_parameters()):
        if not name.startswith("unused"):
            generator = torch.Generator().manual_seed(seed + len(name))
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def test_biases_of_two_dimensions_are_not_decayed() -> None:
    layer = SwiGLU(4, 3, bias=True)
    decayed, plain = make_optimizer(layer, SPEC).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (SPEC.weight_decay, 0.0)
    assert {id(p) for p in plain["params"]} == {id(layer.gate_up_proj.bias), id(layer.down_proj.bias)}
    assert {id(p) for p in decayed["params"]} == {id(layer.gate_up_proj.weight), id(layer.down_proj.weight)}


def test_adamw_decays_matrices_and_leaves_vectors() -> None:
    model = Small()
    weight, bias = (p.detach().double().clone() for p in (model.linear.weight, model.linear.bias))
    optimizer = make_optimizer(model, SPEC)
    set_learning_rate(optimizer, 0.05)
    moments = {id(t): (torch.zeros_like(t), torch.zeros_like(t)) for t in (weight, bias)}
    for t in (1, 2, 3):
        step(model, optimizer, t)
        for value, parameter, decay in ((weight, model.linear.weight, 0.1), (bias, model.linear.bias, 0.0)):
            assert parameter.grad is not None
            g = parameter.grad.double()
            m, v = moments[id(value)]
            m.mul_(0.9).add_(g * 0.1)
            v.mul_(0.95).add_(g * g * 0.05)
            value.mul_(1 - 0.05 * decay)
            value.sub_(0.05 * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8))
    torch.testing.assert_close(model.linear.weight.detach().double(), weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.linear.bias.detach().double(), bias, rtol=1e-5, atol=1e-6)


def test_state_is_by_name_and_survives_another_order_of_parameters() -> None:
    model, other = Small(), Small(swapped=True)
    other.load_state_dict(model.state_dict())
    first, second = make_optimizer(model, SPEC), make_optimizer(other, SPEC)
    step(model, first, 1)
    saved = optimizer_tensors(model, first)
    assert set(saved) == {
        f"{module}.{part}/{field}"
        for module in ("linear", "other")
        for part in ("weight", "bias")
        for field in ("step", "exp_avg", "exp_avg_sq")
    }
    other.load_state_dict(model.state_dict())
    load_optimizer_tensors(other, second, saved)
    for seed in (2, 3):
        step(model, first, seed)
        step(other, second, seed)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_state_of_another_model_is_refused_with_every_name() -> None:
    model = Small()
    optimizer = make_optimizer(model, SPEC)
    step(model, optimizer, 1)
    saved = optimizer_tensors(model, optimizer)
    saved["nobody/step"] = torch.tensor(1.0)
    saved["linear.bias/exp_avg"] = torch.zeros(5)
    del saved["other.weight/exp_avg_sq"]
    with pytest.raises(CheckpointError) as caught:
        load_optimizer_tensors(model, optimizer, saved)
    for part in ("nobody is no parameter", "linear.bias/exp_avg has shape (5,)", "other.weight/exp_avg_sq is missing"):
        assert part in str(caught.value)


def test_clipping_scales_to_the_norm_and_tells_what_it_was() -> None:
    model = Small()
    parameters = list(model.parameters())
    for parameter in parameters[:4]:
        parameter.grad = torch.full_like(parameter, 2.0)
    norm = gradient_norm(parameters)
    assert norm.item() == pytest.approx(2.0 * math.sqrt(16))
    clip_gradients(parameters, 1.0, norm)
    assert gradient_norm(parameters).item() == pytest.approx(1.0, rel=1e-5)
    assert parameters[0].grad is not None
    parameters[0].grad[0, 0] = math.inf
    assert not math.isfinite(gradient_norm(parameters).item())
