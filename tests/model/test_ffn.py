"""Gate and up have a dimension of their own: shards along F compute their part of the whole layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fathom.model import build
from fathom.model.ffn import SwiGLU
from fathom.model.moe import ExpertAssignment, Experts, MoELayer
from fathom.spec import MixtureOfExperts, ModelSpec

HIDDEN, WIDTH, PARTS = 16, 12, 3


def shard(module: nn.Module, names: dict[str, int], part: int) -> nn.Module:
    """Keep one of PARTS equal shards of each named parameter, along the dimension given."""
    for name, dimension in names.items():
        owner, _, own = name.rpartition(".")
        whole = module.get_parameter(name).detach()
        setattr(module.get_submodule(owner), own, nn.Parameter(whole.chunk(PARTS, dimension)[part].contiguous()))
    return module


def dense(bias: bool) -> SwiGLU:
    torch.manual_seed(0)
    layer = SwiGLU(HIDDEN, WIDTH, bias=bias)
    if layer.down_proj.bias is not None:
        nn.init.zeros_(layer.down_proj.bias)  # a sum over shards would count it once a shard
    return layer


@pytest.mark.parametrize("bias", [False, True])
def test_shards_of_a_dense_layer_along_its_width_add_up_to_the_layer(bias: bool) -> None:
    x = torch.randn(2, 5, HIDDEN)
    names = {"gate_up_proj.weight": 1, "down_proj.weight": 1} | ({"gate_up_proj.bias": 1} if bias else {})
    parts = [shard(dense(bias), names, part)(x) for part in range(PARTS)]
    torch.testing.assert_close(torch.stack(parts).sum(0), dense(bias)(x))


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("grad", [False, True])
def test_shards_of_the_experts_along_their_width_add_up_to_the_experts(tokens: int, grad: bool) -> None:
    moe = MixtureOfExperts(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=WIDTH)

    def layer() -> MoELayer:
        torch.manual_seed(0)
        return MoELayer(HIDDEN, moe)

    x = torch.randn(1, tokens, HIDDEN)
    names = {"experts.gate_up_proj": 2, "experts.down_proj": 2}
    with torch.set_grad_enabled(grad):
        parts = [shard(layer(), names, part)(x)[0] for part in range(PARTS)]
        torch.testing.assert_close(torch.stack(parts).sum(0), layer()(x)[0])


def test_gradients_lie_as_the_weights_do() -> None:
    layer, x = dense(True), torch.randn(4, HIDDEN)
    layer(x).square().sum().backward()
    gate, up = (layer.gate_up_proj.weight[half].detach().requires_grad_() for half in range(2))
    gate_bias, up_bias = (layer.gate_up_proj.bias[half].detach() for half in range(2))
    hidden = nn.functional.silu(x @ gate.T + gate_bias) * (x @ up.T + up_bias)
    layer.down_proj(hidden).square().sum().backward()
    grad = layer.gate_up_proj.weight.grad
    assert grad is not None
    torch.testing.assert_close(grad, torch.stack([part.grad for part in (gate, up) if part.grad is not None]))


def test_initial_weights_are_those_of_the_joined_matrix(latent_spec: Any) -> None:
    """The stream of draws is that of (2F, D), in the order of the state."""
    spec: ModelSpec = latent_spec()
    generator = torch.Generator().manual_seed(3)
    model = build(spec, seed=3)
    drawn: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and not name.endswith("bias"):
            joined = (parameter.numel() // parameter.shape[-1], parameter.shape[-1])
            drawn[name] = torch.empty(joined).normal_(0.0, spec.initializer_range, generator=generator)
    assert any("gate_up_proj" in name for name in drawn)
    for name, parameter in model.named_parameters():
        assert name not in drawn or torch.equal(drawn[name], parameter.detach().view_as(drawn[name])), name


def test_the_number_of_experts_is_that_of_the_weights() -> None:
    """A layer that holds some of the experts computes those, whatever its spec says."""
    torch.manual_seed(1)
    moe = MixtureOfExperts(n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=WIDTH)
    whole, part = Experts(HIDDEN, moe), Experts(HIDDEN, moe)
    part.gate_up_proj = nn.Parameter(whole.gate_up_proj[2:5].detach().clone())
    part.down_proj = nn.Parameter(whole.down_proj[2:5].detach().clone())
    x, weights = torch.randn(7, HIDDEN), torch.rand(7, 2)
    indices = torch.randint(0, 3, (7, 2))
    torch.testing.assert_close(
        part(x, ExpertAssignment(indices, weights)), whole(x, ExpertAssignment(indices + 2, weights))
    )
