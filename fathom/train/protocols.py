"""The protocols of the batches and loaders that a trainer takes."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from fathom.data.packed import PackedBatch
from fathom.model.vision import ImageBatch


class TokenBatch(Protocol):
    """Packed sequences of T + 1 tokens: the first T are read, the last T are predicted."""

    @property
    def tokens_BT1(self) -> Tensor:
        """Token ids, int64 (B, T + 1)."""
        ...

    @property
    def source_B(self) -> Tensor:
        """Index of each sequence's source, int64 (B,)."""
        ...

    @property
    def images(self) -> ImageBatch | None:
        """The images of the batch's image tokens, as many for each sequence; None where there are none."""
        ...

    @property
    def targets_BT(self) -> Tensor | None:
        """What is learned, int64 (B, T), -100 where nothing is; None where it is every next token."""
        ...

    @property
    def ends_BT(self) -> Tensor | None:
        """Which of the first T tokens is its sequence's last, bool (B, T); None where rows hold no such ends.

        Multi-token prediction learns nothing across one.
        """
        ...


class Resumable(Protocol):
    """Something whose position a checkpoint keeps."""

    def state(self) -> dict[str, Any]:
        """Return where it stands, as JSON can hold it."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a place that ``state`` returned."""
        ...


class ExampleCounter(Protocol):
    """How far a loader of epochs has come, in conversations or pairs."""

    @property
    def examples_per_epoch(self) -> int:
        """Examples of one epoch."""
        ...

    @property
    def examples_given(self) -> int:
        """Examples given so far, over all epochs."""
        ...


class Loader(Resumable, Protocol):
    """An endless, resumable stream of batches."""

    def next(self, batch_size: int) -> TokenBatch | PackedBatch:
        """Return the next ``batch_size`` sequences, or packed sequences of as many tokens."""
        ...
