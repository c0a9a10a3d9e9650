"""Single tokens in a bitmask of allowed tokens, (Z,) words of 32 bits in int32.

Z words of 32 tokens each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def allow(bitmask_Z: Tensor, token_id: int) -> None:
    """Allow a token."""
    word, bit = divmod(token_id, 32)
    bitmask_Z[word] |= (1 << bit) if bit < 31 else -(1 << 31)


def allows(bitmask_Z: Tensor, token_id: int) -> bool:
    """Return whether a token is allowed."""
    word, bit = divmod(token_id, 32)
    return bool((int(bitmask_Z[word]) >> bit) & 1)
