"""Attention of one decoded token over cache pages, native against PyTorch's scaled_dot_product_attention.

PyTorch is given keys and values as one contiguous float32 cache, the native kernels pages of 32 tokens in disorder:
absorbed latent attention of two shapes in every cache format, and grouped heads. On ``--threads`` threads each.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from ctypes import addressof
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import peers, timing
from fathom.kernels.native import library
from fathom.kernels.native.attention import Attention, Pages, attend, attention_workspace, describe_pages
from fathom.model.cache.quantized import QuantizedPages
from fathom.plan.cache_rows import QuantizedFormat, quantized_rows
from fathom.spec import GroupedQueryAttention, LatentAttention

PAGE = 32
CONTEXTS = (128, 2048, 8192)
PLAIN = {"float32": torch.float32, "bfloat16": torch.bfloat16}
QUANTIZED: tuple[QuantizedFormat, ...] = ("int8", "int6")


@dataclass(frozen=True)
class Shape:
    """Query heads in groups that share a head of keys, and what pages hold: keys and values, or latents."""

    spec: GroupedQueryAttention | LatentAttention
    kv_heads: int
    heads: int
    width: int
    value_width: int


def latent(heads: int, rank: int, rope: int) -> Shape:
    """Return the absorbed form: all heads share the latents."""
    spec = LatentAttention(
        num_heads=heads, kv_lora_rank=rank, qk_rope_head_dim=rope, qk_nope_head_dim=64, v_head_dim=64, q_lora_rank=None
    )
    return Shape(spec, 1, heads, rank + rope, rank)


SHAPES = {
    "bench-s": latent(8, 128, 32),
    "deepseek-v2-lite": latent(16, 512, 64),
    "smollm2-135m": Shape(GroupedQueryAttention(num_heads=9, num_kv_heads=3, head_dim=64), 3, 3, 64, 64),
}


class Cache:
    """One layer's pages, and the same numbers as one contiguous cache for PyTorch."""

    def __init__(self, shape: Shape, context: int) -> None:
        self.shape, self.context = shape, context
        latent = isinstance(shape.spec, LatentAttention)
        count = 1 if latent else 2
        self.rows = [torch.randn(context, shape.kv_heads * shape.width) for _ in range(count)]
        self.order = torch.randperm(context // PAGE)
        self.table = self.order.argsort().to(torch.int32)
        self.q = torch.randn(1, shape.kv_heads, shape.heads, shape.width)
        self.out = torch.empty(shape.kv_heads * shape.heads, shape.value_width)

    def pages(self, cache_format: str) -> tuple[list[torch.Tensor], list[Pages]]:
        """Return the pages in disorder and their description."""
        slots = (self.table.long()[:, None] * PAGE + torch.arange(PAGE)).flatten()
        held, described = [], []
        for index, rows in enumerate(self.rows):
            if cache_format in PLAIN:
                stored = torch.empty_like(rows, dtype=PLAIN[cache_format])
                stored[slots] = rows.to(stored.dtype)
                described.append(describe_pages(stored))
            else:
                layout = quantized_rows(self.shape.spec, cache_format)[index]  # type: ignore[arg-type]
                pages = QuantizedPages(len(self.table), PAGE, layout, device=rows.device, dtype=rows.dtype)
                pages.write(slots, rows)
                stored = pages.rows_NY
                described.append(describe_pages(stored, layout))
            held.append(stored)
        return held, described

    def native(self, pool: library.ThreadPool, cache_format: str) -> Callable[[], None]:
        """Return a call of the native kernels."""
        shape = self.shape
        held, described = self.pages(cache_format)
        keys, values = described[0], described[-1]
        workspace = attention_workspace(pool.threads, shape.width, shape.value_width)
        items = [
            Attention(
                keys=addressof(keys), values=addressof(values), table=self.table.data_ptr(), page_size=PAGE,
                position=self.context - 1, tokens=1, heads=shape.heads, width=shape.width,
                key_column=head * shape.width, value_column=head * shape.value_width, value_width=shape.value_width,
                scale=shape.width**-0.5, q=self.q[0, head].data_ptr(), q_head=shape.width,
                out=self.out[head * shape.heads].data_ptr(), out_head=shape.value_width,
            )
            for head in range(shape.kv_heads)
        ]  # fmt: skip

        def run() -> None:
            attend(pool, items, workspace)
            del held[len(described) :]  # the pages live as long as the call

        return run

    def torch(self) -> Callable[[], None]:
        """Return a call of PyTorch's fused kernel, values of latents padded to the keys' width as it asks."""
        shape = self.shape
        k, v = (
            rows.view(1, self.context, shape.kv_heads, shape.width).transpose(1, 2)
            for rows in (self.rows[0], self.rows[-1])
        )

        def run() -> None:
            F.scaled_dot_product_attention(self.q, k, v)

        return run


def measure(name: str, context: int, threads: int, rounds: int) -> dict[str, object]:
    """Return medians and ratios for one shape and context; outputs in float32 are compared first."""
    cache, pool = Cache(SHAPES[name], context), library.ThreadPool(threads)
    torch.set_num_threads(threads)
    contestants = {"torch": cache.torch()}
    contestants |= {cache_format: cache.native(pool, cache_format) for cache_format in (*PLAIN, *QUANTIZED)}
    contestants["float32"]()
    k, v = (rows.view(1, context, cache.shape.kv_heads, -1).transpose(1, 2) for rows in (cache.rows[0], cache.rows[-1]))
    expected = F.scaled_dot_product_attention(cache.q, k, v)[0, ..., : cache.shape.value_width].flatten(0, 1)
    torch.testing.assert_close(cache.out, expected, atol=1e-4, rtol=1e-4)
    calls = {key: timing.Backend(_repeated(call, 1 + 4096 // context)) for key, call in contestants.items()}
    seconds = timing.interleave(calls, rounds=rounds, warmup=3)
    return timing.summary(seconds, units=1 + 4096 // context, peer="torch")


def _repeated(call: Callable[[], None], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            call()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--contexts", type=int, nargs="+", default=list(CONTEXTS))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    found = {
        f"{shape} context {context} threads {threads}": measure(shape, context, threads, a.rounds)
        for shape in a.shapes
        for context in a.contexts
        for threads in a.threads
    }
    peers.write("native-attention", {"isa": library.current_isa(), "calls": found}, a.out)


if __name__ == "__main__":
    main()
