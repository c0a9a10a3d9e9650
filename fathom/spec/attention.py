"""Attention: grouped-query attention (MHA, GQA and MQA are points of it) and multi-head latent attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fathom.errors import SpecError
from fathom.spec import check

LARGEST = 2**16
"""What heads, widths of heads and ranks may be at most; far above any model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedQueryAttention:
    """MHA (num_kv_heads = num_heads), GQA, or MQA (num_kv_heads = 1), optionally with a window."""

    kind: ClassVar[str] = "gqa"
    num_heads: int
    """Query heads.

    Unit: heads
    Paper: 32 (LLM 7B), 64 (LLM 67B)
    Example: 4
    """
    num_kv_heads: int
    """Key and value heads, each shared by equally many query heads.

    Unit: heads
    Paper: 32 (LLM 7B), 8 (LLM 67B §2.2)
    Example: 2
    """
    head_dim: int
    """Width of a head, even, since rotary embedding rotates pairs.

    Paper: 128 (LLM)
    Example: 64
    """
    qkv_bias: bool = False
    """Whether the projections to queries, keys and values have biases, as Qwen2's do."""
    out_bias: bool = False
    """Whether the output projection has a bias."""
    sliding_window: int | None = None
    """A token attends to so many tokens, itself included; left out, to all before it.

    Unit: tokens
    Paper: 4096 (Mistral 7B)
    Example: 128
    """

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_kv_heads", "head_dim"):
            check.count(name, getattr(self, name), LARGEST)
        check.multiple_of("num_heads", self.num_heads, self.num_kv_heads, why="each KV head serves equally many heads")
        check.multiple_of("head_dim", self.head_dim, 2, why="rotary embedding rotates pairs")
        if self.sliding_window is not None:
            check.positive("sliding_window", self.sliding_window)

    @property
    def rope_dim(self) -> int:
        """Width of the rotated part of a head."""
        return self.head_dim

    @property
    def cache_numbers_per_token(self) -> int:
        """Numbers cached per token and layer (V2 Table 1)."""
        return 2 * self.num_kv_heads * self.head_dim

    @property
    def label(self) -> str:
        """Short name for tables."""
        if self.num_kv_heads == self.num_heads:
            name = "MHA"
        else:
            name = "MQA" if self.num_kv_heads == 1 else f"GQA-{self.num_kv_heads}"
        return name + (f" window {self.sliding_window}" if self.sliding_window else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (V2 §2.1): keys and values are up-projections of one cached latent."""

    kind: ClassVar[str] = "mla"
    num_heads: int
    """Query heads.

    Unit: heads
    Paper: 128 (V2 §3.1.2), 16 (V2-Lite)
    Example: 4
    """
    kv_lora_rank: int
    """Width of the latent vector from which the keys and values of all heads are made; it is what is cached.

    Paper: 512 (V2 §3.1.2)
    Example: 64
    """
    qk_nope_head_dim: int
    """Width of the part of a query or key head without position.

    Paper: 128 (V2 §3.1.2)
    Example: 32
    """
    qk_rope_head_dim: int
    """Width of the rotated part of a query or key head; its key is shared by all heads, and cached too. Even.

    Paper: 64 (V2 §3.1.2)
    Example: 32
    """
    v_head_dim: int
    """Width of a value head.

    Paper: 128 (V2 §3.1.2)
    Example: 32
    """
    q_lora_rank: int | None = None
    """Width of the latent vector from which queries are made; left out, they are projected directly, as V2-Lite does.

    Paper: 1536 (V2 §3.1.2)
    Example: 128
    """
    bias: bool = False
    """Whether the projections have biases.

    Paper: false (V2, V3)
    """

    def __post_init__(self) -> None:
        for name in ("num_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            check.count(name, getattr(self, name), LARGEST)
        check.multiple_of("qk_rope_head_dim", self.qk_rope_head_dim, 2, why="rotary embedding rotates pairs")
        if self.q_lora_rank is not None and self.q_lora_rank <= 0:
            raise SpecError(
                "q_lora_rank", f"must be above 0, got {self.q_lora_rank}", "leave it out for direct queries", alone=True
            )
        if self.q_lora_rank is not None:
            check.count("q_lora_rank", self.q_lora_rank, LARGEST)

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head: the part without position and the rotated part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def rope_dim(self) -> int:
        """Width of the rotated part of a head."""
        return self.qk_rope_head_dim

    @property
    def cache_numbers_per_token(self) -> int:
        """Numbers cached per token and layer (V2 Table 1)."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def label(self) -> str:
        """Short name for tables."""
        return f"MLA-{self.kv_lora_rank}+{self.qk_rope_head_dim}"


Attention = GroupedQueryAttention | LatentAttention
