"""config.json of DeepSeek-VL: a llama in text_config, SigLIP in vision_config, SAM in high_res_vision_config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fathom.errors import SpecError
from fathom.spec.hf.common import OWN
from fathom.spec.hf.dense import read_llama, write_llama
from fathom.spec.hf.fields import Fields
from fathom.spec.hf.rope import ConfigLayout
from fathom.spec.mapping import to_mapping
from fathom.spec.model import ModelSpec
from fathom.spec.vision import Gelu, SamSpec, SiglipSpec, VisionSpec

T = TypeVar("T")

TEXT, LOW, HIGH = "text_config", "vision_config", "high_res_vision_config"
SUB_CONFIGS = (TEXT, LOW, HIGH)
"""Tables that are configs of their own."""

_INERT = ("architectures", "initializer_range", "model_type", "tie_word_embeddings")
"""Fields of a sub config that change nothing: how a model of its own would be named or begun."""


def read_vl(fields: Fields) -> dict[str, Any]:
    """Read model_type deepseek_vl: one tower."""
    low = _read_sub(fields, LOW, _read_siglip)
    token = fields.integer("image_token_id", 100015)
    return _read_text(fields) | {"vision": VisionSpec(low=low, image_token_id=token, connector="mlp")}


def read_vl_hybrid(fields: Fields) -> dict[str, Any]:
    """Read model_type deepseek_vl_hybrid: two towers."""
    low, high = _read_sub(fields, LOW, _read_siglip), _read_sub(fields, HIGH, _read_sam)
    token = fields.integer("image_token_id", 100015)
    return _read_text(fields) | {"vision": VisionSpec(low=low, high=high, image_token_id=token, connector="hybrid")}


def write_vl(spec: ModelSpec, layout: ConfigLayout) -> dict[str, Any]:
    """Write model_type deepseek_vl."""
    vision = _vision(spec)
    if vision.high is not None:
        raise SpecError("vision.high", "family deepseek_vl has one tower", "choose family deepseek_vl_hybrid")
    return _write(spec, vision, "DeepseekVLForConditionalGeneration", layout)


def write_vl_hybrid(spec: ModelSpec, layout: ConfigLayout) -> dict[str, Any]:
    """Write model_type deepseek_vl_hybrid."""
    vision = _vision(spec)
    if vision.high is None:
        raise SpecError("vision.high", "family deepseek_vl_hybrid has two towers", "choose family deepseek_vl")
    return {
        **_write(spec, vision, "DeepseekVLHybridForConditionalGeneration", layout),
        HIGH: _write_sam(vision.high),
    }


def _read_sub(fields: Fields, name: str, read: Callable[[Fields], T]) -> T:
    """Read a sub config; a missing one has nothing but defaults."""
    table = Fields(fields.table(name) or {})
    try:
        found = read(table)
        for inert in _INERT:
            table.raw(inert)
        unknown = table.check_rest()
    except SpecError as error:
        raise error.under(name) from None
    fields.note_unknown(name, unknown)
    return found


def _read_text(fields: Fields) -> dict[str, Any]:
    """Read the llama; ``tie_word_embeddings`` stands outside it, and inside it in files of transformers 4."""

    def read(table: Fields) -> dict[str, Any]:
        table.only("model_type", ("llama", None), "only llama language models are built")
        inside = table.flag("tie_word_embeddings", True)
        return read_llama(table) | {"tie_word_embeddings": fields.flag("tie_word_embeddings", inside)}

    for name in ("architectures", "bos_token_id", "eos_token_id", "pad_token_id"):
        fields.raw(name)
    return _read_sub(fields, TEXT, read)


def _read_siglip(table: Fields) -> SiglipSpec:
    table.only("model_type", ("siglip_vision_model", None), "only SigLIP towers are built")
    table.only("num_channels", (3, None), "images have three colours")
    return SiglipSpec(
        hidden_size=table.integer("hidden_size", 768),
        num_hidden_layers=table.integer("num_hidden_layers", 12),
        num_attention_heads=table.integer("num_attention_heads", 12),
        intermediate_size=table.integer("intermediate_size", 3072),
        image_size=table.integer("image_size", 224),
        patch_size=table.integer("patch_size", 16),
        layer_norm_eps=table.number("layer_norm_eps", 1e-6),
        hidden_act=_gelu(table.word("hidden_act", "gelu_pytorch_tanh")),
        vision_use_head=table.flag("vision_use_head", True),
    )


def _gelu(word: str) -> Gelu:
    if word not in ("gelu", "gelu_pytorch_tanh"):
        raise SpecError("hidden_act", f"{word!r} is not supported", "use gelu or gelu_pytorch_tanh")
    return "gelu" if word == "gelu" else "gelu_pytorch_tanh"


def _read_sam(table: Fields) -> SamSpec:
    table.only("model_type", ("sam_vision_model", None), "only SAM towers are built")
    table.only("num_channels", (3, None), "images have three colours")
    table.only("hidden_act", ("gelu", None), "only gelu is built")
    table.only("qkv_bias", (True, None), "only projections with biases are built")
    table.only("use_abs_pos", (True, None), "only towers with learned positions are built")
    for inert in ("intermediate_size", "num_pos_feats", "scale"):
        table.raw(inert)
    width = table.integer("hidden_size", 768)
    ratio, inner = table.number("mlp_ratio", 4.0), table.optional_integer("mlp_dim")
    return SamSpec(
        hidden_size=width,
        num_hidden_layers=table.integer("num_hidden_layers", 12),
        num_attention_heads=table.integer("num_attention_heads", 12),
        mlp_dim=int(width * ratio) if inner is None else inner,
        image_size=table.integer("image_size", 1024),
        patch_size=table.integer("patch_size", 16),
        window_size=table.integer("window_size", 14),
        global_attn_indexes=_indexes(table.raw("global_attn_indexes")),
        output_channels=table.integer("output_channels", 256),
        use_rel_pos=table.flag("use_rel_pos", True),
        layer_norm_eps=table.number("layer_norm_eps", 1e-6),
    )


def _indexes(value: Any) -> tuple[int, ...]:
    listed = (2, 5, 8, 11) if value is None else value
    if not isinstance(listed, list | tuple) or any(isinstance(i, bool) or not isinstance(i, int) for i in listed):
        raise SpecError("global_attn_indexes", f"expected a list of layers, got {value!r}", "correct the config.json")
    return tuple(listed)


def _vision(spec: ModelSpec) -> VisionSpec:
    if spec.vision is None:
        raise SpecError("vision", f"family {spec.family} needs vision towers", "set vision or choose family llama")
    return spec.vision


def _write(spec: ModelSpec, vision: VisionSpec, architecture: str, layout: ConfigLayout) -> dict[str, Any]:
    text = write_llama(spec, layout)
    own = text.pop(OWN)
    del text["architectures"]
    return {
        "model_type": spec.family,
        "architectures": [architecture],
        "image_token_id": vision.image_token_id,
        "tie_word_embeddings": spec.tie_word_embeddings,
        TEXT: text | {"model_type": "llama"},
        LOW: _write_siglip(vision.low),
        OWN: own,
    }


def _write_siglip(tower: SiglipSpec) -> dict[str, Any]:
    return {"model_type": "siglip_vision_model", "num_channels": 3, **to_mapping(tower)}


def _write_sam(tower: SamSpec) -> dict[str, Any]:
    fixed = {"num_channels": 3, "hidden_act": "gelu", "qkv_bias": True, "use_abs_pos": True}
    return {"model_type": "sam_vision_model", **fixed, **to_mapping(tower)}
