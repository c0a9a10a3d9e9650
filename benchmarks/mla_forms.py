"""Absorbed against expanded attention over cached latents, and how to weigh their multiply-adds against each other.

The decoder chooses the form with fewer multiply-adds, those of the expanded form counted ``EXPANDED_COST_FACTOR``
times each, because it also copies the keys and values that it makes. This measures both forms and says, for every
weight, how much slower the chosen forms are together than the faster ones: the geometric mean over all cases.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import torch

from benchmarks import peers, timing
from fathom.families import preset
from fathom.model.attention.mla import EXPANDED_COST_FACTOR, MLA, costs
from fathom.model.cache import AttentionGroup
from fathom.spec import LatentAttention

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
KEYS = (128, 512, 2048)
WEIGHTS = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.7, 2.0)


def ratio(shape: str, tokens: int, keys: int, count: int) -> float:
    """Return the absorbed form's time over the expanded one's."""
    spec = preset(f"bench-{shape}")
    attention = spec.attention
    assert isinstance(attention, LatentAttention)
    layer = MLA(spec, attention).eval()
    q_nope = torch.randn(1, tokens, attention.num_heads, attention.qk_nope_head_dim)
    q_rope = torch.randn(1, tokens, attention.num_heads, attention.qk_rope_head_dim)
    seen = torch.randn(1, 1, keys, attention.kv_lora_rank + attention.qk_rope_head_dim)
    mask = None if tokens == 1 else torch.ones(1, tokens, keys, dtype=torch.bool)
    part = AttentionGroup(tokens, keys, mask, causal=False)
    latents, rope_keys = seen[:, 0].split([attention.kv_lora_rank, attention.qk_rope_head_dim], -1)

    def absorbed() -> None:
        layer._absorbed(part, q_nope, q_rope, seen)

    def expanded() -> None:
        layer._expanded(part, q_nope, q_rope, latents, rope_keys)

    with torch.inference_mode():
        seconds = timing.interleave({"absorbed": absorbed, "expanded": expanded}, rounds=count)
    return statistics.median(seconds["absorbed"]) / statistics.median(seconds["expanded"])


def regret(measured: dict[str, float], weight: float) -> float:
    """Return how much slower the chosen forms are than the faster ones."""
    logs = []
    for name, found in measured.items():
        shape, tokens, keys = name.split()
        attention = preset(f"bench-{shape}").attention
        assert isinstance(attention, LatentAttention)
        expanded, absorbed = costs(attention, int(tokens), int(keys))
        logs.append(math.log((found if absorbed < weight * expanded else 1.0) / min(found, 1.0)))
    return math.exp(statistics.fmean(logs)) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    cases = [(shape, tokens, keys) for shape in "sml" for keys in KEYS for tokens in TOKENS if tokens <= keys]
    measured = {f"{s} {t} {k}": round(ratio(s, t, k, a.rounds), 3) for s, t, k in cases}
    slower = {str(weight): round(regret(measured, weight), 4) for weight in WEIGHTS}
    result = {"chosen": EXPANDED_COST_FACTOR, "slower_than_best": slower, "absorbed_over_expanded": measured}
    peers.write("attention-forms", result, a.out)


if __name__ == "__main__":
    main()
