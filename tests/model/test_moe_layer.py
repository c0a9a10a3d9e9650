"""The layer against the published models' layers; its dtype, its state, its gradients and its dropped pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DeepseekV2Config, DeepseekV3Config, MixtralConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from fathom.model.ffn import SwiGLU
from fathom.model.moe import MoELayer, RoutingContext
from fathom.spec import moe as spec
from fathom.spec.moe import BalanceSpec, GroupLimited, MixtureOfExperts

HIDDEN, WIDTH, EXPERTS, CHOSEN = 16, 12, 8, 3


def make(shared: int = 2, **router: Any) -> MoELayer:
    moe = MixtureOfExperts(
        n_routed_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        moe_intermediate_size=WIDTH,
        n_shared_experts=shared,
        router=spec.RouterSpec(**router),
    )
    layer = MoELayer(HIDDEN, moe)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return layer


def inputs(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 7)), HIDDEN, generator=torch.Generator().manual_seed(1))


V3 = {
    "score": "sigmoid",
    "select": GroupLimited(n_group=4, topk_group=2, group_score="top2_sum"),
    "selection_bias": True,
    "normalize": True,
    "scale": 2.5,
}


def copy_weights(layer: MoELayer, theirs: nn.Module) -> None:
    with torch.no_grad():
        theirs.gate.weight.copy_(layer.gate.weight)
        theirs.experts.gate_up_proj.copy_(layer.experts.gate_up_proj.flatten(1, 2))
        theirs.experts.down_proj.copy_(layer.experts.down_proj)
        if layer.shared_experts is not None:
            gate, up = layer.shared_experts.gate_up_proj.weight
            theirs.shared_experts.gate_proj.weight.copy_(gate)
            theirs.shared_experts.up_proj.weight.copy_(up)
            theirs.shared_experts.down_proj.weight.copy_(layer.shared_experts.down_proj.weight)


def agree(layer: MoELayer, theirs: nn.Module) -> None:
    copy_weights(layer, theirs)
    for shape in ((2, 7), (1, 1), (3, 1)):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(layer(inputs(*shape))[0], theirs(inputs(*shape)), rtol=1e-4, atol=1e-5)


COMMON = {"hidden_size": HIDDEN, "moe_intermediate_size": WIDTH, "n_routed_experts": EXPERTS, "n_shared_experts": 2}


def test_v2_layer_equals_transformers() -> None:
    groups = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0}
    config = DeepseekV2Config(**COMMON, **groups, num_experts_per_tok=CHOSEN, num_attention_heads=4)
    agree(make(select=GroupLimited(n_group=4, topk_group=2), scale=16.0), DeepseekV2Moe(config))


def test_v3_layer_equals_transformers() -> None:
    groups = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True}
    theirs = DeepseekV3MoE(DeepseekV3Config(**COMMON, **groups, num_experts_per_tok=CHOSEN))
    layer = make(**V3)
    bias = torch.linspace(-2, -1, EXPERTS)
    layer.gate.e_score_correction_bias.copy_(bias)
    theirs.gate.e_score_correction_bias.copy_(bias)
    agree(layer, theirs)


def test_mixtral_layer_equals_transformers() -> None:
    config = MixtralConfig(
        hidden_size=HIDDEN, intermediate_size=WIDTH, num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN
    )
    agree(make(shared=0, normalize=True), MixtralSparseMoeBlock(config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("grad", [False, True])
def test_the_stream_keeps_its_dtype(dtype: torch.dtype, tokens: int, grad: bool) -> None:
    layer, x = make(**V3).to(dtype), inputs(1, tokens).to(dtype)
    with torch.set_grad_enabled(grad):
        y, routing = layer(x)
    assert y.dtype == dtype
    assert y.shape == x.shape
    assert routing.weights_BTK.dtype == torch.float32


@pytest.mark.parametrize("tokens", [1, 7])
def test_autocast_keeps_a_float32_stream(tokens: int) -> None:
    layer, x = make(), inputs(1, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = layer(x)
    assert y.dtype == torch.float32
    exact = layer(x)[0]
    assert 0 < (y - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("router", [{}, V3])
def test_forward_changes_no_state(router: dict[str, Any]) -> None:
    layer = make(**router, balance=BalanceSpec(capacity_factor=1.0, devices=4)) if not router else make(**router)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    names = {name: sorted(vars(module)) for name, module in layer.named_modules()}
    layer(inputs(), RoutingContext(torch.tensor([False, True])))[0].sum().backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    assert names == {name: sorted(vars(module)) for name, module in layer.named_modules()}


def test_recomputation_gives_the_same_gradients() -> None:
    def gradients(recompute: bool) -> list[Tensor]:
        layer, x = make(**V3), inputs().requires_grad_()
        y = checkpoint(layer, x, use_reentrant=False)[0] if recompute else layer(x)[0]
        return list(torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]))

    for once, again in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(once, again)


def test_a_dropped_pair_contributes_nothing_and_shared_experts_see_every_token() -> None:
    layer = make(balance=BalanceSpec(capacity_factor=0.5, devices=4))
    x = inputs()
    y, routing = layer(x, RoutingContext(torch.tensor([False, True])))
    assert routing.kept_BTK is not None
    assert layer.shared_experts is not None
    assert not routing.kept_BTK.all()
    expected = layer.shared_experts(x).detach()
    for b, t, k in torch.nonzero(routing.kept_BTK).tolist():
        expert = int(routing.indices_BTK[b, t, k])
        gate, up = layer.experts.gate_up_proj[expert] @ x[b, t]
        output = F.linear(F.silu(gate) * up, layer.experts.down_proj[expert])
        expected[b, t] += (routing.weights_BTK[b, t, k] * output).detach()
    torch.testing.assert_close(y, expected)


def test_one_token_alone_equals_the_same_token_in_a_batch() -> None:
    layer, x = make(**V3), inputs(1, 9)
    with torch.no_grad():
        whole = layer(x)[0]
        for t in range(9):
            torch.testing.assert_close(layer(x[:, t : t + 1])[0], whole[:, t : t + 1])


def test_parameter_names_and_shapes_are_the_published_ones() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in make(**V3).state_dict().items()}
    assert shapes == {
        "gate.weight": (EXPERTS, HIDDEN),
        "gate.e_score_correction_bias": (EXPERTS,),
        "experts.gate_up_proj": (EXPERTS, 2, WIDTH, HIDDEN),
        "experts.down_proj": (EXPERTS, HIDDEN, WIDTH),
        "shared_experts.gate_up_proj.weight": (2, 2 * WIDTH, HIDDEN),
        "shared_experts.down_proj.weight": (HIDDEN, 2 * WIDTH),
    }
    assert make(shared=0).shared_experts is None


@pytest.mark.parametrize("bias", [False, True])
def test_dense_layer_is_silu_gate_times_up(bias: bool) -> None:
    layer = SwiGLU(HIDDEN, WIDTH, bias=bias)
    x = inputs()
    gate, up = layer.gate_up_proj(x).split(WIDTH, dim=-1)
    torch.testing.assert_close(layer(x), layer.down_proj(F.silu(gate) * up))
    assert (layer.down_proj.bias is not None) == bias
