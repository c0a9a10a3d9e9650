"""The layout of a token's elements in a quantized cache, to the byte (``model/cache/quantized.py``).

A row is what is cached of one token in one layer: keys, values, or the latent with its rotary key. First come the
scales of all groups, bfloat16 for its range, then the codes. A group's scale is its largest magnitude over the largest
code, rounded up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fathom.spec import GroupedQueryAttention, LatentAttention

QuantizedFormat = Literal["int8", "int6"]
EIGHT_BITS = 127
"""Largest code of an element of one byte."""
PAIRED_MAX_CODE = 22
"""Largest code where two elements share 11 bits: 45 x 45 = 2025 pairs, 5.5 bits an element."""

SCALE_BYTES = 2
PAIR_BLOCK = 32
PAIR_BLOCK_BYTES = 22

# Keys that carry positions suffer most from rounding: MLA's rotary key keeps 8 bits and small groups.
LATENT_GROUP, ROTARY_GROUP, HEAD_GROUP = 128, 16, 32


@dataclass(frozen=True, slots=True)
class Segment:
    """``width`` neighbouring elements of a row with codes from ``-largest`` to ``largest``, ``group`` to a scale."""

    width: int
    largest: int
    group: int

    @property
    def scales(self) -> int:
        """Number of groups."""
        return self.width // self.group

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes; pairs come in blocks of 32 numbers."""
        return self.width if self.largest == EIGHT_BITS else -(-self.width // PAIR_BLOCK) * PAIR_BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class QuantizedRow:
    """One token's elements of one kind and layer."""

    segments: tuple[Segment, ...]

    @property
    def width(self) -> int:
        """Numbers."""
        return sum(segment.width for segment in self.segments)

    @property
    def scales(self) -> int:
        """Number of groups."""
        return sum(segment.scales for segment in self.segments)

    @property
    def nbytes(self) -> int:
        """Bytes with scales, even so that every row's scales are aligned."""
        count = self.scales * SCALE_BYTES + sum(segment.code_bytes for segment in self.segments)
        return count + count % 2


def quantized_rows(
    attention: GroupedQueryAttention | LatentAttention, cache_format: QuantizedFormat
) -> tuple[QuantizedRow, ...]:
    """Return the rows cached of a token in a layer: of keys and of values, or of the latent.

    ``int8`` takes a byte per element. ``int6`` is 6 bits on average, scales included, at every published shape: MLA's
    latents in pairs at 5.5 bits and its rotary key at 8 (V2 §3.2.3 says 6 on average and no more), keys and values of
    heads in pairs with a scale for every 32.
    """
    largest = PAIRED_MAX_CODE if cache_format == "int6" else EIGHT_BITS
    if isinstance(attention, GroupedQueryAttention):
        group = _divisor(attention.head_dim, HEAD_GROUP)
        return (QuantizedRow((Segment(attention.num_kv_heads * attention.head_dim, largest, group),)),) * 2
    latent, rotary = attention.kv_lora_rank, attention.qk_rope_head_dim
    return (
        QuantizedRow(
            (
                Segment(latent, largest, _divisor(latent, LATENT_GROUP)),
                Segment(rotary, EIGHT_BITS, _divisor(rotary, ROTARY_GROUP)),
            )
        ),
    )


def cache_bits_per_number(attention: GroupedQueryAttention | LatentAttention, cache_format: QuantizedFormat) -> float:
    """Bits one cached number takes in a quantized format, scales and padding included."""
    rows = quantized_rows(attention, cache_format)
    return 8 * sum(row.nbytes for row in rows) / sum(row.width for row in rows)


def _divisor(width: int, limit: int) -> int:
    """The largest divisor of ``width`` up to ``limit``."""
    return next(size for size in range(min(width, limit), 0, -1) if width % size == 0)
