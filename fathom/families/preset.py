"""A preset: the spec of one published model, and how far its numbers are confirmed."""

from __future__ import annotations

from dataclasses import dataclass

from fathom.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Preset:
    """A published model as a spec.

    ``source`` names the paper or release its numbers come from. ``unconfirmed`` lists the spec fields (dotted paths)
    that no stored copy of the paper or of the released config confirms; an empty tuple means all are.
    """

    spec: ModelSpec
    source: str
    unconfirmed: tuple[str, ...] = ()
