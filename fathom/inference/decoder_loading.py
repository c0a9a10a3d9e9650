"""From a source of weights to a decoder in the form it runs in: plain, or packed while it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fathom.checkpoint.fp8 import FP8_KIND
from fathom.checkpoint.gguf.blocks import BLOCK_FORMATS
from fathom.checkpoint.weights import WeightSource, load_weights
from fathom.kernels.native import library
from fathom.kernels.native.matrix import PackedExperts, PackedFormat, PackedMatrix
from fathom.kernels.weight_formats import QuantizedWeight
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.model.quantize import quantize
from fathom.model.quantized import quantized_weights
from fathom.progress import NULL_PROGRESS, Progress
from fathom.spec.engine import WeightChoice

if TYPE_CHECKING:
    from fathom.checkpoint.packed_loading import PlannedPacking

_NAMES: dict[PackedFormat, str] = {"q8": "Q8_0", "q4": "Q4_0", "q4m": "Q4_1", "float32": "F32", "bfloat16": "BF16"}


def load_decoder(
    source: WeightSource,
    device: torch.device,
    dtype: torch.dtype,
    weights: WeightChoice,
    progress: Progress = NULL_PROGRESS,
) -> Decoder:
    """Read a model's weights, for inference; ``weights`` is as of ``LanguageModel.open``.

    What the native library packs is packed parameter by parameter: beside the model, one of them is held.

    Raises:
        CheckpointError: tensors do not fit the spec, or cannot be packed.
    """
    plan = {}
    if packs_while_reading(source, device, weights):
        from fathom.checkpoint.packed_loading import load_packed, plan_packing

        assert weights != "plain"
        model = build(source.spec, device="meta", dtype=dtype).requires_grad_(False)
        plan = plan_packing(model, source, weights)
        if plan:
            load_packed(model, source, plan, progress)
            return model
    model = build(source.spec, device=device, dtype=dtype, seed=None)
    load_weights(model, source, progress)
    if weights in ("int8", "int4"):
        quantize(model, "int8" if weights == "int8" else "int4")
    return model


def packs_while_reading(source: WeightSource, device: torch.device, weights: WeightChoice) -> bool:
    """Whether the native library would hold these weights packed: where it is asked for, by default quantized ones."""
    wanted = weights in ("int8", "int4") or (weights == "auto" and is_quantized(source))
    return wanted and device.type == "cpu" and library.available()


def is_quantized(source: WeightSource) -> bool:
    """Whether a file holds quantized numbers: blocks of GGUF, or FP8."""
    return any(entry.kind in BLOCK_FORMATS or entry.kind == FP8_KIND for entry in source.stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldForm:
    """Parameters that are held in one form once a model is open.

    ``stored`` are the types that a file has them in, empty for what is read as numbers; ``rounded`` says whether
    quantized numbers are rounded again.
    """

    format: str
    stored: tuple[str, ...]
    rounded: bool
    parameters: tuple[str, ...]
    nbytes: int


def planned_forms(
    source: WeightSource, device: torch.device, dtype: torch.dtype, weights: WeightChoice
) -> list[HeldForm]:
    """Return in which forms ``load_decoder`` will hold a model, most bytes first; only headers are read.

    Of int8 and int4 without the native library the forms before quantizing are returned.
    """
    model = build(source.spec, device="meta", dtype=dtype)
    plan: Mapping[str, PlannedPacking] = {}
    if packs_while_reading(source, device, weights):
        from fathom.checkpoint.packed_loading import plan_packing

        assert weights != "plain"
        plan = plan_packing(model, source, weights)
    found: dict[tuple[str, tuple[str, ...], bool], dict[str, int]] = {}
    for name, tensor in model.state_dict().items():
        planned = plan.get(name)
        if planned is None:
            found.setdefault((str(tensor.dtype).removeprefix("torch."), (), False), {})[name] = tensor.nbytes
        else:
            key = (_NAMES[planned.format], tuple(sorted(set(planned.kinds))), planned.loses)
            found.setdefault(key, {})[name] = planned.nbytes
    forms = [
        HeldForm(format=format, stored=stored, rounded=rounded, parameters=tuple(sizes), nbytes=sum(sizes.values()))
        for (format, stored, rounded), sizes in found.items()
    ]
    return sorted(forms, key=lambda form: form.nbytes, reverse=True)


def planned_weights(
    source: WeightSource, device: torch.device, dtype: torch.dtype, weights: WeightChoice
) -> tuple[str, int | None]:
    """Return what ``weight_names`` and ``weight_bytes`` will be once a model is loaded; None for bytes of ``dtype``."""
    if not packs_while_reading(source, device, weights):
        return ("plain" if weights == "auto" else weights), None
    forms = planned_forms(source, device, dtype, weights)
    sizes = Counter[str]()
    for form in forms:
        if form.format in _NAMES.values():
            sizes[form.format] += form.nbytes
    return _joined(sizes), sum(form.nbytes for form in forms) if sizes else None


def weight_names(model: Decoder) -> str:
    """Return the formats of quantized weights by GGUF's names, most bytes first, or PyTorch's; plain without any."""
    sizes = Counter[str]()
    for weights in quantized_weights(model):
        if isinstance(weights, PackedMatrix | PackedExperts):
            sizes[_NAMES[weights.format]] += weights.nbytes
        else:
            matrix = weights if isinstance(weights, QuantizedWeight) else weights[0]
            sizes[matrix.format] += weights.nbytes
    return _joined(sizes)


def _joined(sizes: Counter[str]) -> str:
    return " and ".join(name for name, _ in sizes.most_common()) or "plain"
