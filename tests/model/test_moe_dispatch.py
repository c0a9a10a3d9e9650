"""The seam for expert parallelism: layers that each hold some experts, behind dispatchers, add up to the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fathom.kernels.weight_formats import quantize_experts
from fathom.model.moe import ExpertAssignment, Experts, LocalDispatcher, MoELayer, RoutedExperts
from fathom.model.quantized import QuantizedExperts
from fathom.spec import MixtureOfExperts

HIDDEN, TOKENS, EXPERTS, CHOSEN, PROCESSES = 32, 11, 6, 3, 3
MOE = MixtureOfExperts(n_routed_experts=EXPERTS, num_experts_per_tok=CHOSEN, moe_intermediate_size=16)


class PartDispatcher:
    """What one process of several would do, without sending: it copies out each pair that meets one of its experts."""

    def __init__(self, process: int) -> None:
        self.first = process * EXPERTS // PROCESSES

    def dispatch(self, x_ND: Tensor, assignment: ExpertAssignment) -> tuple[Tensor, ExpertAssignment, Any]:
        """One row a pair, in the order of the tokens."""
        local_NK = assignment.indices_NK - self.first
        mine_NK = (local_NK >= 0) & (local_NK < EXPERTS // PROCESSES)
        if assignment.kept_NK is not None:
            mine_NK = mine_NK & assignment.kept_NK
        tokens_M, slots_M = torch.where(mine_NK)
        held = ExpertAssignment(local_NK[mine_NK][:, None], assignment.weights_NK[tokens_M, slots_M][:, None])
        return x_ND[tokens_M], held, (tokens_M, len(x_ND))

    def combine(self, y_MD: Tensor, state: tuple[Tensor, int]) -> Tensor:
        """Add each token's rows."""
        tokens_M, count = state
        return y_MD.new_zeros(count, y_MD.shape[1]).index_add(0, tokens_M, y_MD)


def experts() -> Experts:
    torch.manual_seed(0)
    return Experts(HIDDEN, MOE)


def part(process: int) -> RoutedExperts:
    held, rows = experts(), slice(process * EXPERTS // PROCESSES, (process + 1) * EXPERTS // PROCESSES)
    held.gate_up_proj = nn.Parameter(held.gate_up_proj[rows].detach().clone())
    held.down_proj = nn.Parameter(held.down_proj[rows].detach().clone())
    held.dispatcher = PartDispatcher(process)
    return held


def quantized(plain: RoutedExperts) -> RoutedExperts:
    assert isinstance(plain, Experts)
    gate_up, down = plain.gate_up_proj.detach().flatten(1, 2), plain.down_proj.detach()
    return QuantizedExperts(quantize_experts(gate_up, "int8"), quantize_experts(down, "int8"), plain.dispatcher)


def assignment(tokens: int, *, drops: bool) -> ExpertAssignment:
    scores = torch.rand(tokens, EXPERTS, generator=torch.Generator().manual_seed(tokens))
    weights, indices = scores.topk(CHOSEN, dim=-1)
    return ExpertAssignment(indices, weights, (weights > 0.5) if drops else None)


@pytest.mark.parametrize("form", [lambda plain: plain, quantized], ids=["plain", "int8"])
@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_parts_behind_dispatchers_add_up_to_the_whole(
    form: Callable[[RoutedExperts], RoutedExperts], drops: bool, tokens: int
) -> None:
    x_ND, met = torch.randn(tokens, HIDDEN), assignment(tokens, drops=drops)
    with torch.no_grad():
        expected = form(experts())(x_ND, met)
        found = torch.stack([form(part(process))(x_ND, met) for process in range(PROCESSES)]).sum(0)
    tolerance = 0.02 if form is quantized else 1e-5  # quantized products round activations to bfloat16
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_gradients_pass_through_dispatch_and_combine() -> None:
    met = assignment(TOKENS, drops=True)
    x = torch.randn(TOKENS, HIDDEN)
    whole, inputs = experts(), [x.clone().requires_grad_() for _ in range(2)]
    whole(inputs[0], met).square().sum().backward()
    parts = [part(process) for process in range(PROCESSES)]
    torch.stack([held(inputs[1], met) for held in parts]).sum(0).square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)
    for name, parameter in whole.named_parameters():
        slices = [held.get_parameter(name).grad for held in parts]
        joined = torch.cat([grad for grad in slices if grad is not None])
        torch.testing.assert_close(parameter.grad, joined, rtol=1e-4, atol=1e-5)


def test_one_process_dispatches_by_identity() -> None:
    x, met = torch.randn(3, HIDDEN), assignment(3, drops=False)
    layer = MoELayer(HIDDEN, MOE)
    assert isinstance(layer.experts.dispatcher, LocalDispatcher)
    rows, held, state = layer.experts.dispatcher.dispatch(x, met)
    assert (rows is x, held is met) == (True, True)
    assert layer.experts.dispatcher.combine(x, state) is x
