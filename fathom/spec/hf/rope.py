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
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (1,),
    "extrapolation_factor": (1,),
    "attn_factor": (1,),
    "llama_4_scaling_beta": (0,),
    "mrope_section": ([],),
    "short_factor": ([],),
    "long_factor": ([],),
    "alpha": (1,),
}
"""Fields of a rope table that change the rotation and are not built, with the values that change nothing."""
_UNSUPPORTED_KINDS: Mapping[str, str] = {
    "dynamic": "remove the scaling and keep to max_position_embeddings tokens, where it changes nothing",
    **dict.fromkeys(("longrope", "su"), "choose another model: its factors scale short texts too"),
    **dict.fromkeys(("mrope", "proportional", "axial"), "choose a model whose heads are rotated as a whole"),
    "ntk": "set rope_theta to the stretched base and remove the scaling",
}
"""What to do about kinds of scaling that are not built."""
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
    if not new:
        return _read_table(fields, "rope_scaling", old or {}, layout, base, context)
    read = _read_table(fields, "rope_parameters", new, layout, base, context)
    if old and read != _read_table(fields, "rope_scaling", old, layout, read.theta, context):
        raise SpecError(
            "rope_scaling", "rope_parameters is given too, and means another rotation", "keep one of the two"
        )
    return read


def _read_table(
    fields: Fields, name: str, given: Mapping[str, Any], layout: RopeLayout, base: float, context: int
) -> RopeSpec:
    """Read one of the two tables; ``base`` is its rope_theta where it has none."""
    table = Fields(given)
    try:
        _check_one_table(given)
        base = table.number("rope_theta", base)
        scaling = _read_scaling(table, context)
    except SpecError as error:
        raise error.under(name) from None
    fields.note_unknown(name, _unknown(table, scaling))
    return RopeSpec(theta=base, layout=layout, scaling=scaling)


def _check_one_table(given: Mapping[str, Any]) -> None:
    nested = [key for key, value in given.items() if isinstance(value, Mapping) and value]
    if nested:
        raise SpecError(
            nested[0], "rotations by kind of layer are not built", "choose a model whose layers are all alike"
        )


def _unknown(table: Fields, scaling: RopeScaling | None) -> list[str]:
    """Return unknown fields of a rope table that say something."""
    read = _KEYS["default" if scaling is None else scaling.kind] | _COMMON | _UNSUPPORTED.keys()
    return [key for key in table if key not in read and not is_empty(table.raw(key))]


def _read_scaling(table: Fields, context: int) -> RopeScaling | None:
    old, new = table.raw("type"), table.raw("rope_type")
    if old is not None and new is not None and old != new:
        raise SpecError("rope_type", f"{new!r} contradicts type {old!r}", "keep one of the two")
    kind = table.word("rope_type", table.word("type", "default"))
    if kind not in _KEYS:
        how = _UNSUPPORTED_KINDS.get(kind, "choose another model")
        raise SpecError("rope_type", f"{kind!r} is not supported, only {', '.join(sorted(_KEYS))}", how)
    for key, harmless in _UNSUPPORTED.items():
        table.only(key, (None, *harmless), "choose a model without it")
    if kind == "default" and old is None and new is None:
        table.only("factor", (1, None), "say in rope_type how positions are scaled")
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


def without_stale_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Drop the rope_scaling of a config.json that has both tables, if it no longer says the same."""
    if config.get("rope_parameters") and config.get("rope_scaling"):
        try:
            read_rope(Fields(config), "half", theta=1.0, context=config.get("max_position_embeddings", 1))
        except SpecError:
            del config["rope_scaling"]
    return config


def _scaling(scaling: RopeScaling | None, key: str) -> dict[str, Any] | None:
    if scaling is None:
        return None
    names = sorted(_KEYS[scaling.kind])
    values = {name: getattr(scaling, name) for name in names}
    if values.get("truncate"):
        del values["truncate"]  # the default, and unknown to most readers
    return {key: scaling.kind} | {name: value for name, value in values.items() if value is not None}
