"""AdamW against its formula, its state by name, and clipping."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from fathom.errors import CheckpointError, SpecError
from fathom.model.build import build
from fathom.model.ffn import SwiGLU
from fathom.spec import ModelSpec
from fathom.spec.adapter import LoraSpec
from fathom.spec.train import AdamWSpec, MuonSpec, UpdateSpec
from fathom.train.muon import MuonAdamW
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


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    for index, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(100 * seed + index)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    set_learning_rate(optimizer, 0.01 * seed)
    optimizer.step()


def test_muon_moves_matrices_as_pytorchs_own_and_the_rest_as_adamw(model_spec: ModelSpec) -> None:
    """PyTorch's takes matrices only: stacks of experts, and gate and up, are given to it one by one."""
    model, plain = build(model_spec, seed=1), build(model_spec, seed=1)
    optimizer, adamw = make_optimizer(model, replace(SPEC, muon=MuonSpec())), make_optimizer(plain, SPEC)
    assert isinstance(optimizer, MuonAdamW)
    start, moved = dict(plain.named_parameters()), {id(p) for p in optimizer.param_groups[0]["params"]}
    single = {
        name: [nn.Parameter(each.clone()) for each in start[name].detach().reshape(-1, *parameter.shape[-2:])]
        for name, parameter in model.named_parameters()
        if id(parameter) in moved
    }
    assert len(single["layers.1.mlp.experts.gate_up_proj"]) == 8 * 2
    pytorchs = torch.optim.Muon(
        [each for stack in single.values() for each in stack], weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    for seed in (1, 2, 3):
        learn(model, optimizer, seed)
        learn(plain, adamw, seed)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            for each, grad in zip(
                single.get(name, ()), parameter.grad.reshape(-1, *parameter.shape[-2:]), strict=name in single
            ):
                each.grad = grad
        set_learning_rate(pytorchs, 0.01 * seed)
        pytorchs.step()
    for name, parameter in model.named_parameters():
        if name in single:
            wanted = torch.stack(list(single[name])).view_as(parameter)
            torch.testing.assert_close(parameter, wanted, rtol=0, atol=2e-3 if parameter.dim() > 2 else 0)
        else:
            assert torch.equal(parameter, start[name])


def test_muon_takes_the_matrices_of_hidden_layers(model_spec: ModelSpec) -> None:
    model = build(model_spec)
    optimizer = make_optimizer(model, replace(SPEC, muon=MuonSpec()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, decayed, plain = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert {"embed_tokens.weight", "lm_head.weight", "layers.1.mlp.gate.weight"} <= decayed
    assert {name.rpartition(".")[2] for name in plain} == {"weight"}
    assert {"layers.0.mlp.gate_up_proj.weight", "layers.1.self_attn.kv_b_proj.weight", "mtp.0.eh_proj.weight"} <= muon
    assert not any("norm" in name or "gate.weight" in name for name in muon)
    with pytest.raises(SpecError, match=r"optimizer\.muon: finds no matrices"):
        make_optimizer(nn.LayerNorm(4), replace(SPEC, muon=MuonSpec()))


def test_bfloat16_moments_follow_adamw_and_are_rounded(model_spec: ModelSpec) -> None:
    model, plain = build(model_spec, seed=1), build(model_spec, seed=1)
    narrow, wide = make_optimizer(model, replace(SPEC, state_dtype="bfloat16")), make_optimizer(plain, SPEC)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    learn(model, narrow, 1)
    learn(plain, wide, 1)
    for name, parameter in model.named_parameters():  # the moments are rounded after they are used
        torch.testing.assert_close(parameter, plain.get_parameter(name), rtol=1e-6, atol=1e-7)
    for seed in (2, 3, 4):
        learn(model, narrow, seed)
        learn(plain, wide, seed)
    saved = optimizer_tensors(model, narrow)
    exact = optimizer_tensors(plain, wide)
    for name, tensor in saved.items():
        if name.endswith("/step"):
            assert tensor == 4
            continue
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor.float(), exact[name], rtol=0.03, atol=0.01)
    moved, wanted = (
        torch.cat([(each.get_parameter(name) - value).flatten() for name, value in before.items()])
        for each in (model, plain)
    )
    assert (moved - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize("options", [{"state_dtype": "bfloat16"}, {"muon": MuonSpec()}])
def test_other_optimizers_go_on_bit_for_bit(model_spec: ModelSpec, options: dict[str, Any]) -> None:
    for chosen in (options, {"muon": MuonSpec(), "state_dtype": "bfloat16"}):
        model, other = build(model_spec), build(model_spec)
        first, second = (make_optimizer(each, replace(SPEC, **chosen)) for each in (model, other))
        learn(model, first, 1)
        other.load_state_dict(model.state_dict())
        load_optimizer_tensors(other, second, optimizer_tensors(model, first))
        learn(model, first, 2)
        learn(other, second, 2)
        for name, value in model.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])
        assert {t.dtype for n, t in optimizer_tensors(other, second).items() if not n.endswith("/step")} == {
            torch.bfloat16 if "state_dtype" in chosen else torch.float32
        }


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(SpecError, match=r"state_dtype: bfloat16 would round away .* lower beta2 to 0\.99 or less"):
        AdamWSpec(lr=0.1, beta2=0.999, state_dtype="bfloat16")
    with pytest.raises(SpecError, match=r"optimizer\.muon: trains whole matrices"):
        UpdateSpec(optimizer=AdamWSpec(lr=0.1, muon=MuonSpec()), adapter=LoraSpec())
