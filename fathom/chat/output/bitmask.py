"""Single tokens in a bitmask of allowed tokens, (W,) words of 32 bits in int32."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def allow(bitmask_W: Tensor, token_id: int) -> None:
    """Allow a token."""
    word, bit = divmod(token_id, 32)
    bitmask_W[word] |= (1 << bit) if bit < 31 else -(1 << 31)


def allows(bitmask_W: Tensor, token_id: int) -> bool:
    """Return whether a token is allowed."""
    word, bit = divmod(token_id, 32)
    return bool((int(bitmask_W[word]) >> bit) & 1)
