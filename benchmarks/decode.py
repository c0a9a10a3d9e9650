"""Greedy decoding, fp32: tokens per second against transformers with the same weights.

By default the prompt is filled once for both and each round decodes ``--steps`` tokens with each model in turn, the
loop around the model being the same. ``--through generate`` measures what a user calls instead: Fathom's generator and
transformers' ``generate``, prompt included in every call.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from benchmarks import peers, rounds
from fathom.engine.engine import Engine
from fathom.model import Cache, Decoder
from fathom.model.moe import MoELayer
from fathom.spec import EngineSpec, SamplingParams


def fathom_decoder(model: Decoder, prompt_BT: Tensor, room: int, steps: int) -> Callable[[], None]:
    batch, length = prompt_BT.shape
    cache = Cache.allocate(model.spec, batch_size=batch, max_length=length + room)
    for row in range(batch):
        model(prompt_BT[row : row + 1, :-1], cache=cache.rows(row, row + 1))
    cache.set_lengths([length - 1] * batch)

    def run() -> None:
        last_B1 = prompt_BT[:, -1:]
        for _ in range(steps):
            last_B1 = model.logits(model(last_B1, cache=cache).hidden_BTD[:, -1:]).argmax(-1)
        cache.set_lengths([length - 1] * batch)

    return run


def transformers_decoder(model: PreTrainedModel, prompt_BT: Tensor, steps: int) -> Callable[[], None]:
    length = prompt_BT.shape[1]
    cache = DynamicCache(config=model.config)
    for start in range(0, length - 1, 256):
        model(prompt_BT[:, start : min(start + 256, length - 1)], past_key_values=cache, logits_to_keep=1)

    def run() -> None:
        last_B1 = prompt_BT[:, -1:]
        for _ in range(steps):
            last_B1 = model(last_B1, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
        cache.crop(-steps)

    return run


def bare_products(model: Decoder, steps: int) -> Callable[[], None]:
    """The matrix-vector products of a decoding step and nothing else: what no engine on these operators can beat."""
    moe = model.spec.moe
    assert moe is not None
    draw = random.Random(0)
    weights = [[p for p in layer.parameters() if p.dim() == 2] for layer in model.layers]
    inputs = {width: torch.randn(1, width) for group in weights for p in group for width in p.shape}
    experts = [layer.mlp.experts if isinstance(layer.mlp, MoELayer) else None for layer in model.layers]
    inputs[moe.moe_intermediate_size] = torch.randn(1, moe.moe_intermediate_size)

    def run() -> None:
        for _ in range(steps):
            for group, routed in zip(weights, experts, strict=True):
                for weight in group:
                    F.linear(inputs[weight.shape[1]], weight)
                for expert in draw.sample(range(moe.n_routed_experts), moe.num_experts_per_tok) if routed else ():
                    torch.mv(routed.gate_up_proj[expert], inputs[model.spec.hidden_size][0])
                    torch.mv(routed.down_proj[expert], inputs[moe.moe_intermediate_size][0])
            model.logits(inputs[model.spec.hidden_size])

    return run


def generators(ours: Decoder, theirs: PreTrainedModel, prompt_BT: Tensor, steps: int) -> dict[str, Callable[[], None]]:
    sampler = Engine(ours, spec=EngineSpec(prefix_cache=False))
    params = SamplingParams(max_tokens=steps, temperature=0.0)
    mask_BT = torch.ones_like(prompt_BT)

    def fathom() -> None:
        sampler.sample(prompt_BT.tolist(), params)

    def transformers() -> None:
        theirs.generate(
            prompt_BT, attention_mask=mask_BT, max_new_tokens=steps, do_sample=False, eos_token_id=None, pad_token_id=0
        )

    return {"fathom": fathom, "transformers": transformers}


def measure(shape: str, batch: int, context: int, steps: int, count: int, through: str) -> dict[str, object]:
    theirs, ours = peers.transformers_model(shape).eval(), peers.fathom_model(shape).eval()
    generator = torch.Generator().manual_seed(0)
    prompt_BT = torch.randint(0, ours.spec.vocab_size, (batch, context), generator=generator)
    with torch.inference_mode():
        if through == "generate":
            contestants = generators(ours, theirs, prompt_BT, steps)
        else:
            contestants = {
                "fathom": fathom_decoder(ours, prompt_BT, steps + 1, steps),
                "transformers": transformers_decoder(theirs, prompt_BT, steps),
            }
            if batch == 1:
                contestants["bare products"] = bare_products(ours, steps)
        seconds = rounds.alternate(contestants, rounds=count)
    head = {"shape": shape, "batch": batch, "context": context, "steps": steps, "through": through}
    return head | rounds.summary(seconds, units=batch * steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="s", choices=["t", "s", "m", "l"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--through", default="model", choices=["model", "generate"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    result = measure(a.shape, a.batch, a.context, a.steps, a.rounds, a.through)
    name = "decode" if a.through == "model" else "generate"
    peers.write(f"{name}-{a.shape}-batch{a.batch}-context{a.context}", result, a.out)


if __name__ == "__main__":
    main()
