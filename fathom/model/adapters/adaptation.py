"""``Adaptation``: what a decoder says about the adapter that is being trained on it."""

from __future__ import annotations

from dataclasses import dataclass

from fathom.model.adapters.low_rank import DropoutSeed
from fathom.spec.adapter import LoraSpec


@dataclass(frozen=True, slots=True)
class Adaptation:
    """The spec of an adapter, the names of its parameters, and what of the model it leaves out, with the reason.

    ``seed`` is what dropout is drawn from.
    """

    spec: LoraSpec
    names: tuple[str, ...]
    left_out: tuple[str, ...]
    seed: DropoutSeed
