"""Absorbed against expanded attention over cached latents, and how to weigh their multiply-adds against each other.

The decoder chooses the form with fewer multiply-adds, those of the expanded form counted ``EXPANDED_COST_FACTOR``
times each, because it also copies the keys and values that it makes. This measures both forms and says, for every
weight, how much slower the chosen forms are together than the faster ones: the geometric mean over all cases.

Behind long caches, one layer of V2-Lite: the expanded form in tiles of several sizes and the absorbed form, both over
the expanded form with all keys and values at once; weights are compared for the tile size in use
(``TILED_COST_FACTOR``). Seconds are CPU time of one thread with ``--cpu-time``, for machines that do other work too.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import peers, timing
from fathom.families import preset
from fathom.model.attention.mla import EXPANDED_COST_FACTOR, MLA, TILED_COST_FACTOR, costs, tile_size
from fathom.model.cache import AttentionGroup
from fathom.spec import LatentAttention

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
KEYS = (128, 512, 2048)
LONG_TOKENS = (96, 128, 192, 256, 512)
LONG_KEYS = (8192, 16384)
TILES = (256, 512, 1024, 2048, 4096)
WEIGHTS = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.7, 2.0)

Clock = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """One call of a layer: new tokens that see cached keys, causally or all of them."""

    layer: MLA
    part: AttentionGroup
    q_nope: Tensor
    q_rope: Tensor
    seen: Tensor

    @classmethod
    def make(cls, name: str, tokens: int, keys: int, *, causal: bool = False) -> Case:
        """Draw inputs for a layer of a preset; without ``causal`` a mask lets every token see every key."""
        spec = preset(name)
        attention = spec.attention
        assert isinstance(attention, LatentAttention)
        layer = MLA(spec, attention).eval()
        q_nope = torch.randn(1, tokens, attention.num_heads, attention.qk_nope_head_dim)
        q_rope = torch.randn(1, tokens, attention.num_heads, attention.qk_rope_head_dim)
        seen = torch.randn(1, 1, keys, attention.kv_lora_rank + attention.qk_rope_head_dim)
        mask = None if tokens == 1 or causal else torch.ones(1, tokens, keys, dtype=torch.bool)
        return cls(layer, AttentionGroup(tokens, keys, mask, causal), q_nope, q_rope, seen)

    def absorbed(self) -> None:
        """Run as MQA over the latents."""
        self.layer._absorbed(self.part, self.q_nope, self.q_rope, self.seen)

    def expanded(self) -> None:
        """Rebuild all keys and values at once."""
        self.layer._expanded(self.part, *self._inputs())

    def tiled(self, tile: int) -> None:
        """Rebuild keys and values of ``tile`` tokens at a time."""
        self.layer._tiled(self.part, *self._inputs(), tile)

    def _inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        shape = self.layer.shape
        latents, rope_keys = self.seen[:, 0].split([shape.kv_lora_rank, shape.qk_rope_head_dim], -1)
        return torch.cat((self.q_nope, self.q_rope), -1), latents, rope_keys


def ratio(shape: str, tokens: int, keys: int, count: int, clock: Clock) -> float:
    """Return the absorbed form's time over the expanded one's."""
    case = Case.make(f"bench-{shape}", tokens, keys)
    with torch.inference_mode():
        forms = {"absorbed": case.absorbed, "expanded": case.expanded}
        seconds = timing.interleave(forms, rounds=count, clock=clock)
    return statistics.median(seconds["absorbed"]) / statistics.median(seconds["expanded"])


def behind_long_caches(tokens: int, keys: int, count: int, clock: Clock) -> dict[str, float]:
    """Return the time of the absorbed form and of each tile size over that of the untiled expanded form (V2-Lite)."""
    case = Case.make("deepseek-v2-lite", tokens, keys, causal=True)
    forms: dict[str, Callable[[], None]] = {"expanded": case.expanded, "absorbed": case.absorbed}
    forms |= {f"tile {size}": partial(case.tiled, size) for size in TILES}
    with torch.inference_mode():
        seconds = timing.interleave(forms, rounds=count, clock=clock)
    base = statistics.median(seconds.pop("expanded"))
    return {name: round(statistics.median(each) / base, 3) for name, each in seconds.items()}


def regret(measured: dict[str, float], weight: float) -> float:
    """Return how much slower the chosen forms are than the faster ones."""
    logs = []
    for name, found in measured.items():
        shape, tokens, keys = name.split()
        attention = preset(shape if "-" in shape else f"bench-{shape}").attention
        assert isinstance(attention, LatentAttention)
        expanded, absorbed = costs(attention, int(tokens), int(keys))
        logs.append(math.log((found if absorbed < weight * expanded else 1.0) / min(found, 1.0)))
    return math.exp(statistics.fmean(logs)) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--long-rounds", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    clock = time.process_time if a.cpu_time else time.perf_counter
    if a.cpu_time:
        torch.set_num_threads(1)
    if a.rounds:
        cases = [(shape, tokens, keys) for shape in "sml" for keys in KEYS for tokens in TOKENS if tokens <= keys]
        measured = {f"{s} {t} {k}": round(ratio(s, t, k, a.rounds, clock), 3) for s, t, k in cases}
        result = {"chosen": EXPANDED_COST_FACTOR, "slower_than_best": _regrets(measured)}
        peers.write("attention-forms", result | {"absorbed_over_expanded": measured}, a.out)
    if a.long_rounds:
        cases = [("deepseek-v2-lite", tokens, keys) for keys in LONG_KEYS for tokens in LONG_TOKENS]
        long = {f"{s} {t} {k}": behind_long_caches(t, k, a.long_rounds, clock) for s, t, k in cases}
        over_tiles = {name: forms["absorbed"] / forms[f"tile {tile_size(16)}"] for name, forms in long.items()}
        result = {"chosen": TILED_COST_FACTOR, "slower_than_best": _regrets(over_tiles)}
        peers.write("attention-forms-long", result | {"over_expanded": long, "cpu_time": a.cpu_time}, a.out)


def _regrets(measured: dict[str, float]) -> dict[str, float]:
    return {str(weight): round(regret(measured, weight), 4) for weight in WEIGHTS}


if __name__ == "__main__":
    main()
