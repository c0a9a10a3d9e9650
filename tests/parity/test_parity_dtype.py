"""In bfloat16 the residual stream stays bfloat16 in every layer, while routing stays float32."""

from __future__ import annotations

import torch
from torch import nn

from fathom.model import StaticCache, build
from fathom.model.moe import Router


def test_bfloat16_stays_bfloat16_and_routing_float32(pair) -> None:
    model = build(pair.spec, dtype=torch.bfloat16, seed=None).eval()
    model.load_state_dict(pair.ours.state_dict())
    seen: dict[str, torch.dtype] = {}

    def watch(name: str) -> None:
        def hook(module: nn.Module, _: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor):
                seen[name] = first.dtype

        model.get_submodule(name).register_forward_hook(hook)

    names = [n for n, m in model.named_modules() if n and not isinstance(m, Router | nn.ModuleList)]
    for name in names:
        watch(name)
    cache = StaticCache.allocate(pair.spec, batch_size=2, max_length=80, dtype=torch.bfloat16)
    with torch.no_grad():
        for part_BT in pair.tokens_BT.split((70, 1, 9), dim=1):
            output = model(part_BT, cache=cache)
            assert output.hidden_BTD.dtype == torch.bfloat16
            for routing in output.routing:
                assert routing.scores_BTE.dtype == routing.weights_BTK.dtype == torch.float32
    blocks = [f"layers.{i}{part}" for i in range(pair.spec.num_hidden_layers) for part in ("", ".self_attn")]
    assert set(blocks) <= seen.keys()
    assert {name for name, dtype in seen.items() if dtype != torch.bfloat16} == set()
    assert {part.dtype for layer in cache.layers for part in layer.tensors} == {torch.bfloat16}
    for module in model.modules():
        if isinstance(module, Router):
            assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32}
    assert model.logits(output.hidden_BTD).dtype == torch.float32


def test_bfloat16_logits_are_near_the_float32_ones(pair) -> None:
    """Near means: on the whole. One token routed otherwise by rounding is no fault."""
    model = build(pair.spec, dtype=torch.bfloat16, seed=None).eval()
    model.load_state_dict(pair.ours.state_dict())
    with torch.no_grad():
        logits = model.logits(model(pair.tokens_BT).hidden_BTD)
    reference = pair.our_logits(pair.tokens_BT)
    error_BT = (logits - reference).norm(dim=-1) / reference.norm(dim=-1)
    assert error_BT.median() < 0.1
