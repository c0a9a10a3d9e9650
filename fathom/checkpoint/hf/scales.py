"""Pairing FP8 weights with their scales, as config.json's quantization_config describes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fathom.checkpoint.fp8 import BLOCK_SHAPE, FP8_KIND, BlockShape, scale_shape
from fathom.checkpoint.weights import StoredTensor
from fathom.errors import CheckpointError

SUFFIX = "_scale_inv"
"""Suffix of a scale's name after its weight's."""
QUANTIZATION: Mapping[str, Any] = MappingProxyType(
    {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": list(BLOCK_SHAPE)}
)
"""config.json's quantization_config of the released DeepSeek-V3."""
QUANTIZATION_METHODS: Mapping[str, str] = MappingProxyType(
    {
        "aqlm": "additive codebooks",
        "auto-round": "4-bit integers",
        "awq": "4-bit integers",
        "bitnet": "ternary weights",
        "bitsandbytes": "8-bit integers or 4-bit floats",
        "compressed-tensors": "several packed forms",
        "eetq": "8-bit integers",
        "fbgemm_fp8": "FP8 with a scale per row",
        "fouroversix": "4-bit floats",
        "fp_quant": "4-bit floats",
        "gemma": "packed integers",
        "gguf": "blocks inside safetensors",
        "gptq": "2- to 8-bit integers",
        "higgs": "vector codebooks",
        "hqq": "1- to 8-bit integers",
        "metal": "packed integers",
        "mlx": "packed integers",
        "modelopt": "FP8 or 4-bit floats",
        "mxfp4": "4-bit floats",
        "mxfp8": "FP8 in blocks of 32",
        "nvfp4": "4-bit floats",
        "quanto": "2- to 8-bit numbers",
        "quark": "several packed forms",
        "sinq": "packed integers",
        "spqr": "sparse integers",
        "torchao": "several packed forms",
        "vptq": "vector codebooks",
    }
)
"""Methods that transformers, vLLM and MLX write and that are refused, with what they store."""
_SCALE_KINDS = ("F32", "BF16", "F16", "F8_E8M0")
_WIDE = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class FP8Scales:
    """The scale of each FP8 weight, by name, and the block that all have."""

    of: Mapping[str, str]
    names: frozenset[str]
    block: BlockShape


def find_scales(stored: Iterable[StoredTensor], quantization: Any) -> FP8Scales:
    """Pair FP8 weights with their scales; ``quantization`` is config.json's quantization_config, or None.

    Raises:
        CheckpointError: another quantization, an FP8 weight without its scale, a scale of another shape or type, or
            a weight that is no floating-point number.
    """
    block = _block(quantization)
    entries = {entry.name: entry for entry in stored}
    of: dict[str, str] = {}
    for name, entry in entries.items():
        if entry.kind in _WIDE or name.endswith(("rotary_emb.inv_freq", SUFFIX)):
            continue
        if entry.kind != FP8_KIND or len(entry.shape) != 2:
            raise CheckpointError(
                f"{name}: is {entry.kind}, which is not read as a weight; use {', '.join(_WIDE)} or FP8 blocks"
            )
        scale = entries.get(name + SUFFIX)
        if scale is None:
            raise CheckpointError(f"{name}: is FP8 without {name}{SUFFIX}; download all files of the checkpoint")
        if scale.kind not in _SCALE_KINDS or scale.shape != scale_shape(entry.shape, block):
            raise CheckpointError(
                f"{scale.name}: is {scale.kind} of {scale.shape} where blocks of {block} need "
                f"{scale_shape(entry.shape, block)}; use the config.json that belongs to these weights"
            )
        of[name] = scale.name
    return FP8Scales(of, frozenset(of.values()), block)


def _block(quantization: Any) -> BlockShape:
    if not quantization:
        return BLOCK_SHAPE
    method = quantization_method(quantization)
    if method != "fp8":
        what = f", {QUANTIZATION_METHODS[method]}," if method in QUANTIZATION_METHODS else ""
        raise CheckpointError(
            f"config.json: quantization_config: quant_method {method!r}{what} is not read; "
            "use unquantized weights, FP8 blocks or a GGUF file of the model"
        )
    given = quantization.get("weight_block_size", list(BLOCK_SHAPE))
    if not isinstance(given, list) or len(given) != 2 or not all(type(n) is int and n > 0 for n in given):
        raise CheckpointError(
            f"config.json: quantization_config.weight_block_size: {given!r} is not read; use weights with 2-D blocks"
        )
    return given[0], given[1]


def quantization_method(quantization: Any) -> Any:
    """Return quant_method of a quantization_config, or what a config without one means by its other fields."""
    if not isinstance(quantization, dict):
        return quantization
    method = quantization.get("quant_method")
    if method is not None:
        return method
    if quantization.get("load_in_4bit") or quantization.get("load_in_8bit"):
        return "bitsandbytes"
    if "bits" in quantization:
        return "mlx" if quantization.keys() <= {"bits", "group_size", "mode"} else "gptq"
    return "fp8"
