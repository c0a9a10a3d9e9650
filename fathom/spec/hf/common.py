"""What the config.json files of all families share: shape, norms, token ids, rotary embedding, grouped queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fathom.errors import SpecError
from fathom.spec import attention, check
from fathom.spec.attention import GroupedQueryAttention
from fathom.spec.hf.fields import MISSING, Fields
from fathom.spec.hf.rope import ConfigLayout, read_rope, write_rope
from fathom.spec.mapping import from_mapping, to_mapping
from fathom.spec.model import LARGEST, ModelSpec
from fathom.spec.moe import BalanceSpec
from fathom.spec.rope import RopeLayout

Defaults = Mapping[str, Any]
"""What a missing field means: the defaults of transformers' config class of the model type."""

OWN = "fathom"
"""The one field of our own in an exported config.json: the spec's name and its balance settings."""


def read_common(fields: Fields, defaults: Defaults, rope_layout: RopeLayout = "half") -> dict[str, Any]:
    """Read the fields that every family has into arguments of ``ModelSpec``."""
    context = fields.integer("max_position_embeddings", defaults.get("max_position_embeddings", MISSING))
    shape = {
        name: fields.integer(name, defaults.get(name, MISSING))
        for name in ("vocab_size", "hidden_size", "num_hidden_layers")
    }
    for name, value in shape.items():
        check.count(name, value, LARGEST[name])
    ids = {name: fields.token_id(name, defaults.get(name)) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    theta = defaults.get("rope_theta", 10_000.0)
    fields.raw("architectures")
    return {
        **shape,
        **ids,
        "max_position_embeddings": context,
        "rms_norm_eps": fields.number("rms_norm_eps", defaults.get("rms_norm_eps", 1e-6)),
        "tie_word_embeddings": fields.flag("tie_word_embeddings", False),
        "initializer_range": fields.number("initializer_range", 0.02),
        "rope": read_rope(fields, rope_layout, theta=theta, context=context),
    }


def write_common(spec: ModelSpec, architecture: str, layout: ConfigLayout) -> dict[str, Any]:
    """Write the fields that every family has."""
    own: dict[str, Any] = {"name": spec.name}
    if spec.moe is not None:
        own["balance"] = to_mapping(spec.moe.router.balance)
    return {
        "model_type": spec.family,
        "architectures": [architecture],
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_hidden_layers,
        "max_position_embeddings": spec.max_position_embeddings,
        "rms_norm_eps": spec.rms_norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": spec.tie_word_embeddings,
        "initializer_range": spec.initializer_range,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": spec.eos_token_id,
        "pad_token_id": spec.pad_token_id,
        **write_rope(spec.rope, layout),
        OWN: own,
    }


def read_grouped(
    fields: Fields,
    defaults: Defaults,
    hidden_size: int,
    *,
    qkv_bias: bool = False,
    out_bias: bool = False,
    sliding_window: int | None = None,
) -> GroupedQueryAttention:
    """Read heads; null KV heads are as many as heads, and a null width divides hidden_size among the heads."""
    heads = read_heads(fields, defaults)
    kv_heads = fields.optional_integer("num_key_value_heads", defaults.get("num_key_value_heads"))
    width = fields.optional_integer("head_dim")
    if width is None:
        check.multiple_of("hidden_size", hidden_size, heads, why="head_dim is not given")
        width = hidden_size // heads
    check_windows(fields, defaults, sliding_window)
    return GroupedQueryAttention(
        num_heads=heads,
        num_kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=width,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        sliding_window=sliding_window,
    )


def read_heads(fields: Fields, defaults: Defaults) -> int:
    """Read how many heads there are, by which other fields are checked."""
    heads = fields.integer("num_attention_heads", defaults.get("num_attention_heads", MISSING))
    check.count("num_attention_heads", heads, attention.LARGEST)
    return heads


def check_windows(fields: Fields, defaults: Defaults, window: int | None) -> None:
    """Refuse a sliding window, or kinds of layers, other than the one ``window`` that all layers have.

    A window as wide as the context, or switched off by use_sliding_window, changes nothing.
    """
    on = fields.raw("use_sliding_window") is not False
    if not fields.was_read("sliding_window"):
        given = fields.optional_integer("sliding_window")
        context = fields.integer("max_position_embeddings", defaults.get("max_position_embeddings", MISSING))
        if given is not None and on and 0 < given < context:
            remedy = "set it to null if the weights were trained without it, else choose another model"
            raise SpecError("sliding_window", f"{given} is not supported, for this family has no windows", remedy)
    elif window is not None and not on and not fields.was_read("layer_types"):
        problem = f"False contradicts sliding_window {window}"
        raise SpecError("use_sliding_window", problem, "set sliding_window to null or remove use_sliding_window")
    if not fields.was_read("layer_types"):
        kinds, kind = fields.raw("layer_types") or [], "full_attention" if window is None else "sliding_attention"
        if not isinstance(kinds, list) or any(one != kind for one in kinds):
            problem = f"is {kinds!r:.60}, where all layers of this family are {kind}"
            raise SpecError("layer_types", problem, "choose a model whose layers are all alike")


def write_grouped(spec: ModelSpec) -> dict[str, Any]:
    """Write heads."""
    heads = grouped(spec)
    return {
        "num_attention_heads": heads.num_heads,
        "num_key_value_heads": heads.num_kv_heads,
        "head_dim": heads.head_dim,
    }


def grouped(spec: ModelSpec) -> GroupedQueryAttention:
    """Return the spec's grouped-query attention, which its family requires."""
    if not isinstance(spec.attention, GroupedQueryAttention):
        raise SpecError(
            "attention",
            f"family {spec.family} has no {spec.attention.kind} attention",
            "choose family deepseek_v2 or deepseek_v3",
        )
    return spec.attention


def read_fathom_balance(fields: Fields) -> BalanceSpec | None:
    """Return the balance settings of a config.json that this package wrote."""
    own = fields.table(OWN) or {}
    return from_mapping(BalanceSpec, own["balance"], f"{OWN}.balance") if "balance" in own else None


def read_name(fields: Fields) -> str:
    """Return our own name of the model, else the last part of the path it was loaded from, else its model type."""
    own = fields.table(OWN) or {}
    path = fields.raw("_name_or_path")
    last = path.rstrip("/").rsplit("/", 1)[-1] if isinstance(path, str) else ""
    return str(own.get("name") or last or fields.raw("model_type"))
