"""The dtypes that each checkpoint format can be written in, and what a change of dtype does to numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import get_args

import torch

from fathom.checkpoint.fp8 import FP8_KIND
from fathom.checkpoint.weights import WeightSource
from fathom.errors import SpecError
from fathom.inference.conversion_warnings import CheckpointFormat

FLOATS: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
)
FORMAT_DTYPES: Mapping[CheckpointFormat, tuple[str, ...]] = MappingProxyType(
    {
        "hf": ("float32", "float16", "bfloat16", "fp8"),
        "gguf": ("F32", "F16", "BF16", "Q8_0", "Q4_0"),
        "fathom": ("float32", "float16", "bfloat16"),
    }
)
"""The dtypes of each format, by the format's own names."""

_HALF_DTYPE: Mapping[CheckpointFormat, str] = MappingProxyType({"hf": "bfloat16", "gguf": "BF16", "fathom": "bfloat16"})
_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BIAS = "e_score_correction_bias"
_UNQUANTIZED = ("F64", "F32", "F16", "BF16")
_HALF = torch.finfo(torch.float16).max
_LARGEST = {"float16": _HALF, "F16": _HALF, "Q8_0": 127 * _HALF, "Q4_0": 8 * _HALF, "fp8": math.inf}
_SIGNIFICAND_BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}


def largest(kind: str | None) -> float | None:
    """Return the largest number of a dtype (quantized ones scale by a float16), None for float32's.

    Dtypes for which this is not None have no meaningful NaN or infinity.
    """
    return _LARGEST.get(kind or "")


def resolve_target_dtype(format: CheckpointFormat, dtype: str) -> str:
    """Resolve a dtype by its PyTorch or GGUF name; ``SpecError`` when the format has none such."""
    words = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "float32": "F32", "float16": "F16"}
    for word in (dtype, (words | {"bfloat16": "BF16"}).get(dtype, dtype)):
        if word in FORMAT_DTYPES[format]:
            return word
    raise SpecError(
        "--dtype", f"format {format} has no dtype {dtype!r}", f"use one of {', '.join(FORMAT_DTYPES[format])}"
    )


def lossless_dtype(source: WeightSource, format: CheckpointFormat) -> str | None:
    """Return the dtype that changes no number: the stored one where the format has it, else a wider one.

    None keeps the dtype of each tensor.
    """
    if format == "fathom":
        return None
    if format == "hf":
        return "fp8" if _in_blocks(source) else None
    stored = dominant_dtype(source)
    if stored in ("Q8_0", "Q4_0"):
        return stored
    return next((kind for kind in ("F16", "BF16") if _converted(source, "gguf", kind) == {_TORCH_NAMES[kind]}), "F32")


def _in_blocks(source: WeightSource) -> bool:
    return any(entry.kind == FP8_KIND for entry in source.stored)


def dominant_dtype(source: WeightSource) -> str:
    """Return the dtype with the most bytes of the files."""
    sizes: Counter[str] = Counter()
    for entry in source.stored:
        sizes[entry.kind] += entry.nbytes
    return sizes.most_common(1)[0][0] if sizes else "F32"


def dtype_warnings(source: WeightSource, format: CheckpointFormat, kind: str | None) -> tuple[str, ...]:
    """Return a sentence for each change of numbers; empty where all stay the same."""
    return tuple(_changes(source, format, kind))


def _changes(source: WeightSource, format: CheckpointFormat, kind: str | None) -> list[str]:
    stored, found = dominant_dtype(source), list[str]()
    if _in_blocks(source) and kind == "fp8":
        return ["FP8 blocks keep their values, but each scale is computed anew from bfloat16"]
    if _in_blocks(source):
        found.append("FP8 blocks times their scales are rounded to bfloat16")
    goal = _TORCH_NAMES.get(kind or "", kind)
    widened = sorted({entry.kind for entry in source.stored} - {*_UNQUANTIZED, FP8_KIND, kind})
    if widened and goal in (None, "float32"):
        half = _HALF_DTYPE[format]
        smaller = "" if kind is not None and format != "gguf" else f"; --dtype {half} is smaller but rounds"
        found.append(f"{' and '.join(widened)} tensors become float32, number for number{smaller}")
    if kind in ("fp8", "Q8_0", "Q4_0"):
        others = sorted({*widened} - {"Q8_0"}) if stored == kind else ["matrices"]
        return found + ([f"{' and '.join(others)} are quantized to {kind}"] if others else [])
    if goal is not None:
        types = _converted(source, format, kind)
        rounded = sorted(name for name in types if _SIGNIFICAND_BITS[name] > _SIGNIFICAND_BITS[goal])
        found += [f"numbers are rounded from {' and '.join(rounded)} to {goal}"] if rounded else []
        if goal == "float16" and "bfloat16" in types:
            found.append("bfloat16 numbers below 6e-5 lose digits in float16, and those below 3e-8 become 0")
    return found


def _converted(source: WeightSource, format: CheckpointFormat, kind: str | None) -> set[str]:
    """Return the dtypes of the tensors that are converted; norms, routers and biases may stay float32."""
    types = source.dtypes
    names = {name for name in types if not name.endswith(_BIAS)}
    if format == "gguf":
        from fathom.checkpoint.gguf.blocks import QuantType
        from fathom.checkpoint.gguf.names import gguf_rules
        from fathom.checkpoint.gguf.tensor_types import stored_kinds

        kinds = stored_kinds(source.spec, next(one for one in get_args(QuantType) if one == kind))
        names = {rule.param_name for rule in gguf_rules(source.spec) if any(kinds[name] == kind for name in rule.names)}
    return {str(types[name]).removeprefix("torch.") for name in names}
