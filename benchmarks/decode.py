"""Greedy decoding from a filled cache, fp32: tokens per second against transformers with the same weights.

The prompt is filled once for both; each round decodes ``--steps`` tokens with each engine in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from benchmarks import peers, rounds
from fathom.model import Cache, Decoder


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


def measure(shape: str, batch: int, context: int, steps: int, count: int) -> dict[str, object]:
    ours, theirs = peers.fathom_model(shape).eval(), peers.transformers_model(shape).eval()
    generator = torch.Generator().manual_seed(0)
    prompt_BT = torch.randint(0, ours.spec.vocab_size, (batch, context), generator=generator)
    with torch.inference_mode():
        contestants = {
            "fathom": fathom_decoder(ours, prompt_BT, steps + 1, steps),
            "transformers": transformers_decoder(theirs, prompt_BT, steps),
        }
        seconds = rounds.alternate(contestants, rounds=count)
    head = {"shape": shape, "batch": batch, "context": context, "steps": steps}
    return head | rounds.summary(seconds, units=batch * steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="s", choices=["t", "s", "m", "l"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    result = measure(a.shape, a.batch, a.context, a.steps, a.rounds)
    peers.write(f"decode-{a.shape}-batch{a.batch}-context{a.context}", result, a.out)


if __name__ == "__main__":
    main()
