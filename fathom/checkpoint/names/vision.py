"""Vision-language models: DeepSeek-VL's tensor names of the towers and of the language model.

Sources: transformers' deepseek_vl and deepseek_vl_hybrid, whose conversions of the released checkpoints carry one more
``vision_model.`` in the names of SigLIP, as transformers 4 wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fathom.checkpoint.names.tables import LAYERS, OUTSIDE
from fathom.spec import Family, ModelSpec

FAMILIES: tuple[Family, ...] = ("deepseek_vl", "deepseek_vl_hybrid")
"""Families that publish towers beside a language model in llama's names."""

_TEXT = "model.language_model."
_OLD, _NEW = "model.vision_model.vision_model.", "model.vision_model."


def published_vision(spec: ModelSpec, param_name: str) -> tuple[str, ...] | None:
    """Return the Hugging Face names of a parameter in a family of ``FAMILIES``; None when it has none."""
    if spec.vision is None or spec.family not in FAMILIES:
        return None
    if param_name in OUTSIDE:
        return tuple(_text(name) for name in OUTSIDE[param_name])
    part, rest = param_name.split(".", 1)
    if part == "layers":
        index, inner = rest.split(".", 1)
        names = LAYERS["llama"].get(inner)
        return None if names is None else tuple(f"{_TEXT}layers.{index}.{name}" for name in names)
    return _tower(rest) if part == "vision" else None


def current_name(name: str) -> str:
    """Return the name that transformers 5 writes for one that it or transformers 4 wrote."""
    return _NEW + name.removeprefix(_OLD) if name.startswith(_OLD) else name


_PLACES: Mapping[str, str] = MappingProxyType(
    {
        "low.patch_embedding.": "model.vision_model.embeddings.patch_embedding.",
        "low.position_embedding.": "model.vision_model.embeddings.position_embedding.",
        "low.layers.": "model.vision_model.encoder.layers.",
        "low.head.in_proj.": "model.vision_model.head.attention.in_proj_",
        "low.head.out_proj.": "model.vision_model.head.attention.out_proj.",
        "low.": "model.vision_model.",
        "high.patch_embed.": "model.high_res_vision_model.vision_encoder.patch_embed.projection.",
        "high.global_neck.": "model.high_res_vision_neck.",
        "high.downsample.": "model.high_res_vision_proj.",
        "high.alpha": "model.high_res_vision_alpha",
        "high.": "model.high_res_vision_model.vision_encoder.",
        "connector.low_proj.": "model.aligner.vision_proj.",
        "connector.high_proj.": "model.aligner.high_res_vision_proj.",
        "connector.": "model.aligner.",
    }
)
"""Prefixes of the towers' names, Fathom's to Hugging Face; the first match applies, and the rest of a name is equal."""


def _tower(param_name: str) -> tuple[str, ...]:
    begun = next(place for place in _PLACES if param_name.startswith(place))
    name = _PLACES[begun] + param_name.removeprefix(begun)
    return tuple(name.replace(".qkv_proj.", f".{which}_proj.") for which in "qkv") if ".qkv_proj." in name else (name,)


def _text(name: str) -> str:
    return _TEXT + name.removeprefix("model.") if name.startswith("model.") else name
