"""What the scripts of docs/learn.md share: names beside shapes, and one layer with attention of four kinds."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fathom.families import preset
from fathom.spec import GroupedQueryAttention, LatentAttention, ModelSpec

HEADS, WIDTH = 8, 32
KINDS = {
    "MHA": GroupedQueryAttention(num_heads=HEADS, num_kv_heads=HEADS, head_dim=WIDTH),
    "GQA-2": GroupedQueryAttention(num_heads=HEADS, num_kv_heads=2, head_dim=WIDTH),
    "MQA": GroupedQueryAttention(num_heads=HEADS, num_kv_heads=1, head_dim=WIDTH),
    "MLA": LatentAttention(
        num_heads=HEADS,
        kv_lora_rank=4 * WIDTH,
        qk_nope_head_dim=WIDTH,
        qk_rope_head_dim=WIDTH // 2,
        v_head_dim=WIDTH,
    ),
}
"""Eight heads of width 32; MLA in V2's proportions: a latent of four such widths, a rotary key of half of one."""


def show(name: str, tensor: Tensor, how: str = "") -> None:
    """Print a tensor's name, one size for each letter of its suffix, and how it was made."""
    sizes = ", ".join(str(size) for size in tensor.shape)
    print(f"{name:<13} ({sizes})".ljust(34) + how)


def one_layer(kind: str) -> ModelSpec:
    """Return a model of one layer whose attention is of this kind."""
    base = replace(preset("bench-t"), num_hidden_layers=1, vocab_size=256, initializer_range=0.1)
    return replace(base, attention=KINDS[kind], moe=None, first_k_dense_replace=0)
