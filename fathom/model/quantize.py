"""Weights in 8 or 4 bits behind the same model: each matrix is replaced where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from fathom.errors import SpecError
from fathom.kernels.packed import GROUP_SIZES, PACKED_FORMATS, PackedFormat, pack, pack_experts, refusal
from fathom.model.attention.latent import Latent
from fathom.model.decoder import Decoder
from fathom.model.moe.layer import Experts
from fathom.model.packed import PackedLinear, PackedRoutedExperts
from fathom.spec import check
from fathom.spec.engine import WEIGHT_FORMATS, WeightFormat

_HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class Kept:
    """A tensor that stays plain, and why."""

    name: str
    nbytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """What quantizing a model did: bytes of all weights before and after, what was packed and what stays plain.

    A head tied to the embedding becomes a packed copy of it; both count into ``bytes_after``.
    """

    format: PackedFormat
    group_size: int
    bytes_before: int
    bytes_after: int
    packed: tuple[str, ...]
    kept: tuple[Kept, ...]


def quantize(
    model: Decoder, format: PackedFormat, group_size: int = 32, *, head: WeightFormat = "int8"
) -> QuantizationReport:
    """Pack the model's matrices in place, one after another, for inference; what a forward pass takes stays the same.

    ``group_size`` is for int4. ``head`` is the output projection's own format. Embeddings, norms, biases, routers,
    vision towers and the up-projection of latent attention stay plain, and matrices whose width cannot be packed.
    Activations are rounded to bfloat16 in the products (``kernels.packed_linear``). While one matrix is packed, it is
    held in float32 beside the model; a published checkpoint is therefore best opened on a machine that holds it once.

    Raises:
        SpecError: a format or group size that does not exist, weights not finite, or a model packed already.
    """
    check.one_of("format", format, PACKED_FORMATS)
    check.one_of("head", head, WEIGHT_FORMATS)
    if group_size not in GROUP_SIZES:
        raise SpecError("group_size", f"{group_size} is no group of int4", f"use one of {GROUP_SIZES}")
    if any(isinstance(module, PackedLinear | PackedRoutedExperts) for module in model.modules()):
        raise SpecError("model", "is packed already", "open it again to choose another format")
    bytes_before = sum(parameter.nbytes for parameter in model.parameters())
    model.eval().requires_grad_(False)
    reasons = dict(_plain(model, format, group_size))
    packed = [*_pack_modules(model, format, group_size, reasons), *_pack_head(model, head, group_size, reasons)]
    kept = [
        Kept(name, p.nbytes, reasons.get(name, "is a vector" if p.dim() == 1 else "is no linear layer"))
        for name, p in model.named_parameters()
    ]
    after = sum(tensor.nbytes for tensor in kept) + sum(_nbytes(model.get_submodule(name)) for name in packed)
    return QuantizationReport(format, group_size, bytes_before, after, tuple(packed), tuple(kept))


def _plain(model: Decoder, format: PackedFormat, group_size: int) -> Iterator[tuple[str, str]]:
    """Say of every matrix that stays plain why; its name is that of the parameter. The head is not asked about."""
    for name, module in model.named_modules():
        if isinstance(module, Latent):
            yield f"{name}.kv_b_proj.weight", "absorbed attention moves its halves to the query and the output"
        elif isinstance(module, Experts):
            for part, weight in module.named_parameters(recurse=False):
                problem = refusal(weight.shape[1], weight.shape[2], format, group_size)
                if problem is not None:
                    yield f"{name}.{part}", problem
    for name, parameter in model.named_parameters():
        problem = refusal(1, parameter.shape[-1], format, group_size)
        if name.startswith("vision."):
            yield name, "belongs to the vision towers"
        elif name == "embed_tokens.weight":
            yield name, "is looked up row by row"
        elif name.endswith("gate.weight") and parameter.dim() == 2:
            yield name, "routers decide in float32"
        elif parameter.dim() == 2 and problem is not None:
            yield name, problem


def _pack_modules(model: Decoder, format: PackedFormat, group_size: int, reasons: dict[str, str]) -> Iterator[str]:
    """Replace linear layers and stacked experts, and yield their names."""
    for name in [name for name, _ in model.named_modules()]:  # names only: what is replaced must not be held
        place, _, own = name.rpartition(".")
        module, parent = model.get_submodule(name), model.get_submodule(place)
        if isinstance(module, nn.Linear) and name != _HEAD and f"{name}.weight" not in reasons:
            bias = module.bias if isinstance(module.bias, nn.Parameter) else None
            setattr(parent, own, PackedLinear(pack(module.weight, format, group_size), bias))
            yield name
        elif isinstance(module, Experts):
            if any(f"{name}.{part}" in reasons for part, _ in module.named_parameters(recurse=False)):
                for part, _ in module.named_parameters(recurse=False):
                    reasons.setdefault(f"{name}.{part}", "the experts' other matrix stays plain")
                continue
            gate_up, down = (
                pack_experts(weight, format, group_size) for weight in (module.gate_up_proj, module.down_proj)
            )
            setattr(parent, own, PackedRoutedExperts(gate_up, down))
            yield name


def _pack_head(model: Decoder, head: WeightFormat, group_size: int, reasons: dict[str, str]) -> Iterator[str]:
    weight_VD = model.head_weight
    if head == "plain":
        reasons[f"{_HEAD}.weight"] = "was asked to stay plain"
        return
    problem = refusal(weight_VD.shape[0], weight_VD.shape[1], head, group_size)
    if problem is not None:
        reasons[f"{_HEAD}.weight"] = problem
        return
    model.lm_head = PackedLinear(pack(weight_VD, head, group_size))
    yield _HEAD


def _nbytes(module: nn.Module) -> int:
    if isinstance(module, PackedLinear):
        return module.packed.nbytes
    assert isinstance(module, PackedRoutedExperts)
    return module.gate_up.nbytes + module.down.nbytes
