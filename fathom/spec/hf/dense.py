"""config.json of the dense families: llama, mistral and qwen2."""

from __future__ import annotations

from typing import Any

from fathom.errors import SpecError
from fathom.spec.hf.common import Defaults, grouped, read_common, read_grouped, write_common, write_grouped
from fathom.spec.hf.fields import Fields
from fathom.spec.hf.rope import ConfigLayout
from fathom.spec.model import ModelSpec

_LLAMA: Defaults = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MISTRAL: Defaults = {
    **_LLAMA,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
_QWEN2: Defaults = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def read_llama(fields: Fields) -> dict[str, Any]:
    """Read model_type llama; ``attention_bias`` puts biases on all four projections."""
    common = read_common(fields, _LLAMA)
    bias = fields.flag("attention_bias", False)
    return common | {
        "attention": read_grouped(fields, _LLAMA, common["hidden_size"], qkv_bias=bias, out_bias=bias),
        "intermediate_size": fields.integer("intermediate_size", _LLAMA["intermediate_size"]),
        "mlp_bias": fields.flag("mlp_bias", False),
    }


def write_llama(spec: ModelSpec, layout: ConfigLayout) -> dict[str, Any]:
    """Write model_type llama."""
    return {
        **write_common(spec, "LlamaForCausalLM", layout),
        **write_grouped(spec),
        "intermediate_size": spec.intermediate_size,
        "attention_bias": grouped(spec).qkv_bias,
        "mlp_bias": spec.mlp_bias,
    }


def read_mistral(fields: Fields) -> dict[str, Any]:
    """Read model_type mistral; a null window attends to everything, a missing one is 4096."""
    common = read_common(fields, _MISTRAL)
    window = fields.optional_integer("sliding_window", _MISTRAL["sliding_window"])
    return common | {
        "attention": read_grouped(fields, _MISTRAL, common["hidden_size"], sliding_window=window),
        "intermediate_size": fields.integer("intermediate_size", _MISTRAL["intermediate_size"]),
    }


def write_mistral(spec: ModelSpec, layout: ConfigLayout) -> dict[str, Any]:
    """Write model_type mistral."""
    return {
        **write_common(spec, "MistralForCausalLM", layout),
        **write_grouped(spec),
        "intermediate_size": spec.intermediate_size,
        "sliding_window": grouped(spec).sliding_window,
    }


def read_qwen2(fields: Fields) -> dict[str, Any]:
    """Read model_type qwen2: biases on q, k and v; a window on all layers or on none."""
    common = read_common(fields, _QWEN2)
    for name in ("attention_bias", "qkv_bias"):
        fields.raw(name)  # no class of transformers reads them: the biases are there whatever they say
    window = _qwen2_window(fields, common["num_hidden_layers"])
    return common | {
        "attention": read_grouped(fields, _QWEN2, common["hidden_size"], qkv_bias=True, sliding_window=window),
        "intermediate_size": fields.integer("intermediate_size", _QWEN2["intermediate_size"]),
    }


def _qwen2_window(fields: Fields, layers: int) -> int | None:
    window = fields.optional_integer("sliding_window", _QWEN2["sliding_window"])
    if not fields.flag("use_sliding_window", False):
        window = None
    first = fields.integer("max_window_layers", _QWEN2["max_window_layers"])
    full = min(max(first, 0), layers) if window is not None else layers
    kinds = fields.raw("layer_types")
    if kinds is None:
        kinds = ["full_attention"] * full + ["sliding_attention"] * (layers - full)
    if kinds not in (["full_attention"] * layers, ["sliding_attention"] * layers):
        name = "layer_types" if "layer_types" in fields else "max_window_layers"
        raise SpecError(
            name,
            f"a sliding window on some of {layers} layers is not supported",
            "choose a model whose layers are all alike",
        )
    return window if kinds[0] == "sliding_attention" else None


def write_qwen2(spec: ModelSpec, layout: ConfigLayout) -> dict[str, Any]:
    """Write model_type qwen2."""
    window, layers = grouped(spec).sliding_window, spec.num_hidden_layers
    kind = "full_attention" if window is None else "sliding_attention"
    return {
        **write_common(spec, "Qwen2ForCausalLM", layout),
        **write_grouped(spec),
        "intermediate_size": spec.intermediate_size,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": layers if window is None else 0,
        **({"layer_types": [kind] * layers} if layout == "transformers5" else {}),
    }
