"""What the native step does not know is refused when the model is walked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fathom.model import Decoder, build
from fathom.model.adapters.low_rank import LowRankUpdate
from fathom.model.cache import PagePool
from fathom.model.native import NativeModel, Refusal
from tests.published import SPECS

pytestmark = pytest.mark.usefixtures("native")


class _Squared(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


def _adapt(model: Decoder) -> None:
    projection = model.layers[0].self_attn.o_proj
    projection.lora = LowRankUpdate(torch.zeros(2, 64), torch.zeros(64, 2), 1.0)


def _hook(model: Decoder) -> None:
    model.layers[1].mlp.register_forward_hook(lambda *arguments: None)


def _replace(model: Decoder) -> None:
    model.layers[0].input_layernorm = _Squared()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: model.double(), "embed_tokens.weight is float64"),
        (_adapt, "layers.0.self_attn.o_proj is adapted"),
        (_hook, "layers.1.mlp has hooks"),
        (_replace, "_Squared modules"),
    ],
)
def test_what_is_not_known_is_refused_with_its_name(change: Callable[[Decoder], object], reason: str) -> None:
    spec = SPECS["tiny-llama"]
    model = build(spec, seed=1).eval()
    change(model)
    assert NativeModel.of(model, PagePool.allocate(spec, pages=2, page_size=4), 1) == Refusal(reason)


def test_pages_of_another_type_are_refused() -> None:
    spec = SPECS["tiny-llama"]
    pool = PagePool.allocate(spec, pages=2, page_size=4, dtype=torch.float64)
    assert NativeModel.of(build(spec, seed=1).eval(), pool, 1) == Refusal("the cache's format")
