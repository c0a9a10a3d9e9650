"""Presets of published model families, by name. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from fathom.errors import SpecError
from fathom.families import (
    bench,
    deepseek_llm,
    deepseek_moe,
    deepseek_v2,
    deepseek_v3,
    deepseek_vl,
    mistral,
    moe_history,
    r1_distill,
)
from fathom.families.preset import Preset
from fathom.spec import ModelSpec

__all__ = ["PRESETS", "Preset", "preset"]

_ALL = (deepseek_llm, deepseek_moe, deepseek_vl, deepseek_v2, deepseek_v3, r1_distill, mistral, moe_history, bench)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {entry.spec.name: entry for module in _ALL for entry in module.PRESETS}
)
"""Every preset by name, in the order of publication within a family."""


def preset(name: str) -> ModelSpec:
    """Return the spec of a published model by name, such as ``deepseek-v2-lite`` or ``bench-t``.

    Raises:
        SpecError: no such preset; the message names the closest ones.
    """
    try:
        return PRESETS[name].spec
    except KeyError:
        near = difflib.get_close_matches(name.lower(), PRESETS, n=3, cutoff=0.5)
        remedy = f"did you mean {' or '.join(near)}?" if near else f"known presets: {', '.join(PRESETS)}"
        raise SpecError("preset", f"no preset is called {name!r}", remedy) from None
