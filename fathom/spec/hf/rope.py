"""Rotary embedding in config.json: rope_theta with rope_scaling as released, or transformers 5's rope_parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fathom.errors import SpecError
from fathom.spec.hf.fields import Fields, is_empty
from fathom.spec.rope import LinearScaling, Llama3Scaling, RopeLayout, RopeScaling, RopeSpec, YarnScaling

ConfigLayout = Literal["released", "transformers5"]

_KEYS: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset(
        {
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "attention_factor",
            "truncate",
        }
    ),
}
_COMMON = frozenset({"type", "rope_type", "rope_theta", "partial_rotary_factor"})


def config_layout(config: Mapping[str, Any]) -> ConfigLayout:
    """Return which of the two forms a config.json, or the text_config in it, is written in."""
    text = config.get("text_config")
    tables = (config, text) if isinstance(text, Mapping) else (config,)
    return "transformers5" if any(table.get("rope_parameters") is not None for table in tables) else "released"


def read_rope(fields: Fields, layout: RopeLayout, *, theta: float, context: int) -> RopeSpec:
    """Read either form; ``theta`` is the model type's default base, ``context`` its max_position_embeddings."""
    new, old = fields.table("rope_parameters"), fields.table("rope_scaling")
    base = fields.number("rope_theta", theta)
    if new is not None and old:
        raise SpecError("rope_scaling", "rope_parameters is given too", "keep one of the two")
    name = "rope_scaling" if new is None else "rope_parameters"
    table = Fields((old if new is None else new) or {}, keep_unknown=fields.keep_unknown)
    try:
        base = table.number("rope_theta", base)
        scaling = _read_scaling(table, context)
    except SpecError as error:
        raise error.under(name) from None
    return RopeSpec(theta=base, layout=layout, scaling=scaling)


def _read_scaling(table: Fields, context: int) -> RopeScaling | None:
    old, new = table.raw("type"), table.raw("rope_type")
    if old is not None and new is not None and old != new:
        raise SpecError("rope_type", f"{new!r} contradicts type {old!r}", "keep one of the two")
    kind = table.word("rope_type", table.word("type", "default"))
    if kind not in _KEYS:
        raise SpecError("rope_type", f"{kind!r} is not supported", f"use one of {', '.join(sorted(_KEYS))}")
    table.only("partial_rotary_factor", (1, None), "only heads rotated as a whole are built; choose a model without it")
    for key in table:
        if key not in _KEYS[kind] | _COMMON and not is_empty(table.raw(key)) and not table.keep_unknown:
            raise SpecError(key, f"unknown field of {kind} scaling", "remove it or read with keep_unknown=True")
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(factor=table.number("factor"))
    original = table.integer("original_max_position_embeddings", context)
    if kind == "llama3":
        return Llama3Scaling(
            factor=table.number("factor"),
            original_max_position_embeddings=original,
            low_freq_factor=table.number("low_freq_factor"),
            high_freq_factor=table.number("high_freq_factor"),
        )
    return YarnScaling(
        factor=table.number("factor", context / original if original > 0 else 1.0),
        original_max_position_embeddings=original,
        beta_fast=table.number("beta_fast", 32.0),
        beta_slow=table.number("beta_slow", 1.0),
        mscale=_optional(table, "mscale"),
        mscale_all_dim=_optional(table, "mscale_all_dim"),
        attention_factor=_optional(table, "attention_factor"),
        truncate=table.flag("truncate", True),
    )


def _optional(table: Fields, name: str) -> float | None:
    return None if table.raw(name) is None else table.number(name)


def write_rope(rope: RopeSpec, layout: ConfigLayout) -> dict[str, Any]:
    """Write the fields of either form."""
    if layout == "transformers5":
        table = {"rope_theta": rope.theta} | (_scaling(rope.scaling, "rope_type") or {"rope_type": "default"})
        return {"rope_parameters": table}
    return {"rope_theta": rope.theta, "rope_scaling": _scaling(rope.scaling, "type")}


def _scaling(scaling: RopeScaling | None, key: str) -> dict[str, Any] | None:
    if scaling is None:
        return None
    names = sorted(_KEYS[scaling.kind])
    values = {name: getattr(scaling, name) for name in names}
    if values.get("truncate"):
        del values["truncate"]  # the default, and unknown to most readers
    return {key: scaling.kind} | {name: value for name, value in values.items() if value is not None}
