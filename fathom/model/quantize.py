"""Quantize the weights of a model to 8 or 4 bits in place.

X outputs, Y inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from fathom.errors import SpecError
from fathom.kernels.native.matrix import GROUP_COLUMNS
from fathom.kernels.weight_formats import (
    GROUP_SIZES,
    QUANT_FORMATS,
    QuantFormat,
    QuantizedWeight,
    best_group_size,
    quantize_experts,
    quantize_weight,
    unsupported_reason,
)
from fathom.model.attention.mla import MLA
from fathom.model.decoder import Decoder
from fathom.model.ffn import GateUpLinear
from fathom.model.head import OutputHead
from fathom.model.moe.layer import Experts
from fathom.model.moe.router import Router
from fathom.model.packing import Packing, can_pack, packable, target_format
from fathom.model.quantized import QuantizedExperts, QuantizedLinear, QuantizedModule
from fathom.spec import check
from fathom.spec.engine import WEIGHT_FORMATS, WeightFormat

_HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class SkippedParameter:
    """A tensor that is not quantized, and why."""

    name: str
    nbytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class QuantizedParameter:
    """A quantized matrix, or all experts of a layer; ``group_sizes`` are the columns of a scale, except of rows."""

    name: str
    nbytes: int
    group_sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """What quantizing a model did: bytes of all weights before and after, what was quantized and what was skipped.

    In PyTorch's formats a head tied to the embedding becomes a quantized copy of it; both count into ``bytes_after``.
    """

    format: QuantFormat
    bytes_before: int
    quantized: tuple[QuantizedParameter, ...]
    skipped: tuple[SkippedParameter, ...]

    @property
    def bytes_after(self) -> int:
        """Bytes of all weights now."""
        return sum(matrix.nbytes for matrix in self.quantized) + sum(tensor.nbytes for tensor in self.skipped)


def quantize(
    model: Decoder,
    format: QuantFormat,
    group_size: int = 32,
    *,
    head: WeightFormat = "int8",
    passes_gradient: bool = False,
) -> QuantizationReport:
    """Quantize the model's matrices in place, one after another, for inference; its forward pass is called as before.

    On a CPU with the native library weights are packed in GGUF's formats: int8 is Q8_0 and int4 is Q4_0, in groups of
    32 columns; the embedding and the up-projection of latent attention are in 8 bits with either, and a tied head is
    the embedding's matrix. Activations are rounded to 8 bits in the products (``set_activations``).

    Elsewhere, with larger groups and with ``passes_gradient`` they are in PyTorch's formats: ``group_size`` is for
    int4, where a width that it does not divide takes a smaller one; embeddings and the up-projection of latent
    attention stay plain, and activations are rounded to bfloat16. With ``passes_gradient`` they are for training what
    stands around them: products in the activations' own dtype, with a gradient to the activations.

    ``head`` is the output projection's own format. Norms, biases, routers and vision towers are skipped, and matrices
    whose width cannot be quantized. Beside the model, one parameter and its quantized values are held at a time.

    Raises:
        SpecError: a format or group size that does not exist, or a model quantized already. Weights that are not
            finite leave the model partly quantized.
    """
    check.one_of("format", format, QUANT_FORMATS)
    check.one_of("head", head, WEIGHT_FORMATS)
    if group_size not in GROUP_SIZES:
        raise SpecError("group_size", f"{group_size} is no group of int4", f"use one of {GROUP_SIZES}")
    if any(isinstance(module, QuantizedModule) for module in model.modules()):
        raise SpecError("model", "is quantized already", "open it again to choose another format")
    bytes_before = sum(parameter.nbytes for parameter in model.parameters())
    model.eval().requires_grad_(False)
    if can_pack(model) and not passes_gradient and group_size == GROUP_COLUMNS:
        reasons = dict(_skip_reasons(model, "int4", GROUP_COLUMNS))
        quantized = list(_pack_parameters(model, format, head, reasons))
    else:
        reasons = dict(_skip_reasons(model, format, group_size)) | dict(_plain_reasons(model))
        quantized = list(_quantize_modules(model, format, group_size, reasons, passes_gradient))
        quantized += _quantize_head(model, head, group_size, reasons)
    skipped = [
        SkippedParameter(name, p.nbytes, reasons.get(name, _not_a_matrix(name, p)))
        for name, p in model.named_parameters()
    ]
    return QuantizationReport(format, bytes_before, tuple(quantized), tuple(skipped))


def set_activations(model: Decoder, *, rounded: bool) -> None:
    """Choose whether activations are rounded to 8 bits before they meet packed weights, as they are by default."""
    for module in model.modules():
        if isinstance(module, QuantizedModule):
            module.round_activations = rounded


def _pack_parameters(
    model: Decoder, format: QuantFormat, head: WeightFormat, reasons: dict[str, str]
) -> Iterator[QuantizedParameter]:
    """Pack parameters in the native library's formats."""
    packing, entries = Packing(model), packable(model)
    for name, module in model.named_modules():
        if isinstance(module, MLA) and f"{name}.kv_b_proj.weight" not in entries:
            problem = (
                f"its latent or its heads' {module.shape.qk_nope_head_dim} key rows are no multiple of {GROUP_COLUMNS}"
            )
            reasons[f"{name}.kv_b_proj.weight"] = problem
    for name, entry in entries.items():
        target = target_format(entry.role, format, head, tied=model.spec.tie_word_embeddings)
        if target is None:
            reasons[name] = "was excluded by head = plain"
            continue
        try:
            packed = entry.pack(model.get_parameter(name).detach(), target)
        except SpecError as error:
            raise SpecError(name, error.problem, error.remedy) from None
        packing.place(name, packed)
        yield QuantizedParameter(name.removesuffix(".weight"), packed.nbytes, (GROUP_COLUMNS,))


def _skip_reasons(model: Decoder, format: QuantFormat, group_size: int) -> Iterator[tuple[str, str]]:
    """Say why matrices are skipped in any format, by the name of the parameter."""
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or name.endswith(".bias"):
            continue
        problem = _unsupported(parameter, format, group_size)
        if name.startswith("vision."):
            yield name, "belongs to the vision towers"
        elif problem is not None:
            yield name, problem
    for name, module in model.named_modules():
        if isinstance(module, Router):
            yield f"{name}.weight", "routers decide in float32"
        elif isinstance(module, Experts):
            yield from _skipped_experts(name, module, format, group_size)


def _skipped_experts(name: str, module: Experts, format: QuantFormat, group_size: int) -> Iterator[tuple[str, str]]:
    """Experts stay together where one matrix cannot be quantized."""
    problems = {
        f"{name}.{part}": _unsupported(weight, format, group_size)
        for part, weight in module.named_parameters(recurse=False)
    }
    if any(problem is not None for problem in problems.values()):
        for part, problem in problems.items():
            yield part, problem or "the experts' other matrix is not quantized"


def _plain_reasons(model: Decoder) -> Iterator[tuple[str, str]]:
    """Say what stays plain in PyTorch's formats."""
    yield "embed_tokens.weight", "is looked up row by row"
    for name, module in model.named_modules():
        if isinstance(module, MLA):
            yield f"{name}.kv_b_proj.weight", "absorbed attention moves its halves to the query and the output"


def _quantize_modules(
    model: Decoder, format: QuantFormat, group_size: int, reasons: dict[str, str], passes_gradient: bool
) -> Iterator[QuantizedParameter]:
    """Replace linear layers and stacked experts."""
    for name in [name for name, _ in model.named_modules()]:  # names only: replaced modules must be freed
        place, _, own = name.rpartition(".")
        module, parent = model.get_submodule(name), model.get_submodule(place)
        if isinstance(module, nn.Linear | GateUpLinear) and f"{name}.weight" not in reasons:
            bias = nn.Parameter(module.bias.flatten(), requires_grad=False) if module.bias is not None else None
            qweight = _quantize_matrix(module.weight.flatten(0, -2), format, group_size)
            setattr(parent, own, QuantizedLinear(qweight, bias, passes_gradient=passes_gradient))
            yield _quantized_parameter(name, qweight)
        elif isinstance(module, Experts) and f"{name}.down_proj" not in reasons:
            gate_up, down = (
                quantize_experts(weight, format, best_group_size(weight.shape[-1], group_size))
                for weight in (module.gate_up_proj.flatten(1, 2), module.down_proj)
            )
            setattr(parent, own, QuantizedExperts(gate_up, down, module.dispatcher, passes_gradient=passes_gradient))
            yield _quantized_parameter(name, *gate_up.experts, *down.experts)


def _quantize_head(
    model: Decoder, head: WeightFormat, group_size: int, reasons: dict[str, str]
) -> Iterator[QuantizedParameter]:
    assert isinstance(model.lm_head, OutputHead)
    weight_VD = model.lm_head.weight_VD
    if head == "plain":
        reasons[f"{_HEAD}.weight"] = "was excluded by head = plain"
        return
    problem = _unsupported(weight_VD, head, group_size)
    if problem is not None:
        reasons[f"{_HEAD}.weight"] = problem
        return
    qweight = _quantize_matrix(weight_VD, head, group_size)
    model.lm_head = QuantizedLinear(qweight)
    yield _quantized_parameter(_HEAD, qweight)


def _not_a_matrix(name: str, parameter: Tensor) -> str:
    return "is a vector" if parameter.dim() == 1 or name.endswith(".bias") else "is no linear layer"


def _unsupported(weight: Tensor, format: QuantFormat, group_size: int) -> str | None:
    rows, columns = weight.shape[-2:]
    return unsupported_reason(rows, columns, format, best_group_size(columns, group_size))


def _quantize_matrix(weight_XY: Tensor, format: QuantFormat, group_size: int) -> QuantizedWeight:
    return quantize_weight(weight_XY, format, best_group_size(weight_XY.shape[1], group_size))


def _quantized_parameter(name: str, *qweights: QuantizedWeight) -> QuantizedParameter:
    groups = {matrix.group_size for matrix in qweights if matrix.format == "int4"}
    return QuantizedParameter(name, sum(matrix.nbytes for matrix in qweights), tuple(sorted(groups)))
