"""What marks a position that no loss counts."""

from __future__ import annotations

from typing import Final

IGNORE_INDEX: Final = -100
"""The target of a position where nothing is learned, as PyTorch's cross-entropy has it by default."""
