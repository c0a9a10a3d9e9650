"""ModelSpec from a Hugging Face config.json and back, losing nothing.

A config.json says three kinds of things a spec does not: fields that change no number (software, storage), fields
left out because their default was meant, and other spellings of the same value. ``ExtraConfig`` keeps all three, so
that writing an unchanged spec gives the file back exactly, and writing a changed one changes only what changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fathom.errors import SpecError
from fathom.spec.hf import dense, experts, latent, vision
from fathom.spec.hf.common import read_name
from fathom.spec.hf.fields import Fields
from fathom.spec.hf.known_fields import ALIASES
from fathom.spec.hf.rope import ConfigLayout, config_layout, without_stale_rope
from fathom.spec.mapping import to_mapping
from fathom.spec.model import FAMILIES, Family, ModelSpec

_READ: Mapping[Family, Callable[[Fields], dict[str, Any]]] = {
    "llama": dense.read_llama,
    "mistral": dense.read_mistral,
    "qwen2": dense.read_qwen2,
    "mixtral": experts.read_mixtral,
    "deepseek": experts.read_deepseek,
    "deepseek_v2": latent.read_v2,
    "deepseek_v3": latent.read_v3,
    "deepseek_vl": vision.read_vl,
    "deepseek_vl_hybrid": vision.read_vl_hybrid,
}
_WRITE: Mapping[Family, Callable[[ModelSpec, ConfigLayout], dict[str, Any]]] = {
    "llama": dense.write_llama,
    "mistral": dense.write_mistral,
    "qwen2": dense.write_qwen2,
    "mixtral": experts.write_mixtral,
    "deepseek": experts.write_deepseek,
    "deepseek_v2": latent.write_v2,
    "deepseek_v3": latent.write_v3,
    "deepseek_vl": vision.write_vl,
    "deepseek_vl_hybrid": vision.write_vl_hybrid,
}
_PUBLISHED_NAMES = {
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "vision.image_token_id": "image_token_id",
}


ExtraConfig = Mapping[str, Any]
"""What one config.json says beyond its spec, as plain JSON; see ``HFConfig``."""


@dataclass(frozen=True, slots=True)
class HFConfig:
    """A config.json as read: the spec, and what the file says beyond it.

    ``carried`` is plain JSON, meant for ``spec_to_hf``. Its ``fields`` have no place in a spec. ``absent`` names
    fields that were left out, with the value their absence means. ``spelled`` maps a field to [the value as we would
    write it, the value as it was written]. ``inside`` holds the same three of each config within the config.
    ``family`` and ``layout`` say what form the file had. ``unknown`` names the fields, those of tables with the table's
    name before a dot, that nothing is known of and that say something.
    """

    spec: ModelSpec
    carried: ExtraConfig
    unknown: tuple[str, ...] = ()


def spec_from_hf(config: Mapping[str, Any], *, name: str | None = None) -> HFConfig:
    """Read a Hugging Face config.json into a spec and what must be carried along.

    A missing field means the default of transformers' config class of that model_type. ``name`` names the spec;
    without it the name we exported it under, the last part of ``_name_or_path``, or the model type does.

    Raises:
        SpecError: a field is mistyped, or asks for what is not built; the message says what to do.
    """
    if not isinstance(config, Mapping):
        raise SpecError("config.json", f"expected a table, got {config!r}", "give the parsed config.json")
    spec, unknown = _read(config)
    if name is not None:
        spec = replace(spec, name=name)
    layout = config_layout(config)
    written = _WRITE[spec.family](spec, layout)
    return HFConfig(spec, {"family": spec.family, "layout": layout, **_carry(config, written)}, unknown)


def spec_to_hf(spec: ModelSpec, carried: ExtraConfig | None = None) -> dict[str, Any]:
    """Write a spec as the config.json of its family.

    With what was ``carried`` from the file it came from, an unchanged spec gives that file back; without it, the
    released form plus one field of our own (name and balance settings), which other readers ignore.

    Raises:
        SpecError: the family's config.json cannot say what the spec says, so that a reader would compute otherwise.
    """
    layout: ConfigLayout = "transformers5" if carried and carried["layout"] == "transformers5" else "released"
    written = _WRITE[spec.family](spec, layout)
    _check_readable(spec, written)
    if not carried:
        return written
    if carried["family"] != spec.family:
        problem = f"the spec is {spec.family} but what is carried was read from {carried['family']}"
        raise SpecError("family", problem, "write it without what was carried")
    restored = _restore(written, carried)
    for alias, field in ALIASES.get(spec.family, {}).items():
        if restored.get(alias) is not None and restored.get(field, restored[alias]) != restored[alias]:
            del restored[alias]
    return restored


def _carry(config: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """Note what ``config`` says beyond ``written``, and within configs in it."""
    inside = [key for key in vision.SUB_CONFIGS if key in written and isinstance(config.get(key), Mapping)]
    spelled = {
        key: [value, config[key]]
        for key, value in written.items()
        if key in config and key not in inside and not _same(value, config[key])
    }
    carried = {
        "fields": {key: value for key, value in config.items() if key not in written},
        "absent": {key: value for key, value in written.items() if key not in config},
        "spelled": spelled,
    }
    return carried | ({"inside": {key: _carry(config[key], written[key]) for key in inside}} if inside else {})


def _restore(written: dict[str, Any], carried: Mapping[str, Any]) -> dict[str, Any]:
    """Undo ``_carry`` wherever ``written`` is as it was."""
    for key, inner in carried.get("inside", {}).items():
        if key in written:
            written[key] = _restore(written[key], inner)
    for key, meant in carried["absent"].items():
        if key in written and _same(written[key], meant):
            del written[key]
    for key, (ours, theirs) in carried["spelled"].items():
        if key in written and _same(written[key], ours):
            written[key] = theirs
    return without_stale_rope({**carried["fields"], **written})


def _read(config: Mapping[str, Any]) -> tuple[ModelSpec, tuple[str, ...]]:
    """Return the spec, and the names of unknown fields."""
    family = next((known for known in FAMILIES if known == config.get("model_type")), None)
    if family is None:
        problem = f"{config['model_type']!r} is not supported" if "model_type" in config else "is missing"
        raise SpecError("model_type", problem, f"choose a model of {', '.join(FAMILIES)}")
    try:
        fields = Fields(config, ALIASES.get(family))
        arguments = _READ[family](fields)
        name = read_name(fields)
        unknown = fields.check_rest()
        return ModelSpec(name=name, family=family, **arguments), unknown
    except SpecError as error:
        path = _PUBLISHED_NAMES.get(error.path, error.path)
        raise SpecError(path, error.problem, error.remedy) from None


def _check_readable(spec: ModelSpec, written: Mapping[str, Any]) -> None:
    try:
        again, _ = _read(written)
    except SpecError as error:
        raise SpecError(error.path, f"family {spec.family} cannot express it ({error.problem})", error.remedy) from None
    ours, theirs = _flat(to_mapping(spec)), _flat(to_mapping(again))
    for path in sorted(ours.keys() | theirs.keys()):
        if ours.get(path) != theirs.get(path):
            raise SpecError(
                path,
                f"family {spec.family} cannot express {ours.get(path)!r}; its readers would take {theirs.get(path)!r}",
                "use that value or another family",
            )


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _same(one: Any, other: Any) -> bool:
    """Whether two values are written alike in JSON: 1 and 1.0 are not."""
    return json.dumps(one, sort_keys=True, default=str) == json.dumps(other, sort_keys=True, default=str)
