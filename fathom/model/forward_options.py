"""Typed arguments of ``Decoder.forward``: sequence packing and routing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fathom.errors import SpecError


@dataclass(frozen=True, slots=True)
class PackedSequences:
    """Variable-length sequences packed into one row (1, N) without padding; none attends to another.

    ``lengths`` are the tokens of each sequence in the row. ``shared_prefix_lengths``, where given, has one number per
    sequence: a sequence with n > 0 omits its first n tokens, because they equal the first n tokens of the last sequence
    before it that has 0. It attends to that sequence's keys there, at positions 0 to n - 1, and its own tokens follow.

    Raises:
        SpecError: no sequence, an empty one, or a shared prefix longer than the sequence it is taken from.
    """

    lengths: tuple[int, ...]
    shared_prefix_lengths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if min(self.lengths, default=0) < 1:
            problem = f"{len(self.lengths)} sequences of {min(self.lengths, default=0)} tokens or more cannot be packed"
            raise SpecError("packed.lengths", problem, "give at least one sequence, and leave empty ones out")
        prefixes, name = self.shared_prefix_lengths, "packed.shared_prefix_lengths"
        if prefixes is None:
            return
        if len(prefixes) != len(self.lengths):
            problem = f"has {len(prefixes)} numbers for {len(self.lengths)} sequences"
            raise SpecError(name, problem, "give one per sequence, 0 where all of its tokens are in the row")
        complete = 0
        for length, prefix in zip(self.lengths, prefixes, strict=True):
            complete = complete if prefix else length
            if not 0 <= prefix <= complete:
                problem = f"{prefix} tokens are omitted, but the last complete sequence before them has {complete}"
                raise SpecError(name, problem, "omit a prefix of that sequence, or nothing")

    @property
    def num_tokens(self) -> int:
        """N: tokens in the row."""
        return sum(self.lengths)

    @property
    def max_context(self) -> int:
        """Tokens of the longest sequence, its shared prefix included."""
        return max(map(sum, zip(self.lengths, self.shared_prefix_lengths or [0] * len(self.lengths), strict=True)))


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """Training-time control over every router of a forward pass.

    ``drop_exempt_B`` (bool) marks sequences whose tokens are never dropped under a device's budget (V2 §2.2.4); without
    it nothing is dropped by budget. ``seeds_B`` (int64), one per sequence, seed the routers' noise, jitter and random
    second experts; without them nothing is drawn. ``replayed_experts_BTLK`` (integers) are the experts that each token
    is sent to, as ``chosen_experts`` recorded them; a token with -1 in a layer is routed by that layer. MTP modules
    always route for themselves.
    """

    drop_exempt_B: Tensor | None = None
    seeds_B: Tensor | None = None
    replayed_experts_BTLK: Tensor | None = None
