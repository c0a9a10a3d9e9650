"""Pairing FP8 weights with their scales, as config.json's quantization_config describes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fathom.checkpoint.fp8 import BLOCK_SHAPE, BlockShape, scale_shape
from fathom.checkpoint.weights import StoredTensor
from fathom.errors import CheckpointError

SUFFIX = "_scale_inv"
"""Suffix of a scale's name after its weight's."""
QUANTIZATION: Mapping[str, Any] = MappingProxyType(
    {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": list(BLOCK_SHAPE)}
)
"""config.json's quantization_config of the released DeepSeek-V3."""
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
        if entry.kind != "F8_E4M3" or len(entry.shape) != 2:
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
    if quantization is None:
        return BLOCK_SHAPE
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if not isinstance(quantization, dict) or method not in (None, "fp8"):
        raise CheckpointError(
            f"config.json: quantization_config: quant_method {method!r} is not read; use unquantized or FP8 weights"
        )
    given = quantization.get("weight_block_size", list(BLOCK_SHAPE))
    if not isinstance(given, list) or len(given) != 2 or not all(type(n) is int and n > 0 for n in given):
        raise CheckpointError(
            f"config.json: quantization_config.weight_block_size: {given!r} is not read; use weights with 2-D blocks"
        )
    return given[0], given[1]
