"""Which parameters of a decoder an adapter is for, and what is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from fathom.errors import SpecError
from fathom.model.build import Shape
from fathom.model.decoder import Decoder
from fathom.model.ffn import GateUpLinear
from fathom.model.linear import Linear
from fathom.model.moe import Experts
from fathom.model.moe.router import Router
from fathom.model.quantized import QuantizedExperts, QuantizedLinear
from fathom.spec.adapter import ALL_LINEAR, LoraSpec
from fathom.spec.model import ModelSpec

_LAYERS = "layers."
_FUSED = ("gate_proj", "up_proj")


def adaptable(model: Decoder) -> dict[str, Shape]:
    """Return the names and shapes of the parameters that can have a low-rank update: all linear layers and experts.

    Raises:
        SpecError: the model's weights are quantized already.
    """
    found: dict[str, Shape] = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedExperts):
            raise SpecError("adapter", "the weights are quantized", "open plain weights and set adapter.quantize_base")
        if not name.startswith(_LAYERS):
            continue
        if isinstance(module, Linear | GateUpLinear):
            found[f"{name}.weight"] = tuple(module.weight.shape)
        elif isinstance(module, Experts):
            found[f"{name}.gate_up_proj"] = tuple(module.gate_up_proj.shape)
            found[f"{name}.down_proj"] = tuple(module.down_proj.shape)
    return found


def chosen(spec: ModelSpec, shapes: Mapping[str, Shape], lora: LoraSpec) -> list[str]:
    """Return the parameters that ``targets`` name, in the model's order.

    Raises:
        SpecError: a target that names nothing that can be adapted.
    """
    parts = [name for target in lora.targets for name in _as_named(target, lora.targets)]
    for part in parts:
        if part != ALL_LINEAR and not any(_below(name, part) for name in shapes):
            raise SpecError("adapter.targets", f"{part!r} {_why_not(spec, part)}", _known(shapes))
    return [name for name in shapes if any(part == ALL_LINEAR or _below(name, part) for part in parts)]


def left_out(model: Decoder, lora: LoraSpec, targets: Sequence[str]) -> tuple[str, ...]:
    """Say what of a model is not adapted, and why: one sentence for each kind."""
    return tuple(_left_out(model, lora, set(targets)))


def _left_out(model: Decoder, lora: LoraSpec, targets: set[str]) -> Iterator[str]:
    for name in ("embed_tokens", "lm_head"):
        tied = name == "lm_head" and model.spec.tie_word_embeddings
        if name not in lora.modules_to_save and not tied:
            yield f"{name} (modules_to_save trains it whole)"
    routers = sum(isinstance(module, Router) for name, module in model.named_modules() if name.startswith(_LAYERS))
    if routers:
        yield f"{routers} routers (they decide in float32)"
    if model.mtp:
        yield "multi-token prediction"
    if model.vision is not None:
        yield "the vision towers"
    others = [name for name in _all(model) if name not in targets]
    if others:
        kinds = dict.fromkeys(name.removesuffix(".weight").rpartition(".")[2] for name in others)
        yield f"{len(others)} layers that targets does not name ({', '.join(kinds)})"


def _all(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if not name.startswith(_LAYERS):
            continue
        if isinstance(module, Linear | GateUpLinear | QuantizedLinear):
            yield f"{name}.weight"
        elif isinstance(module, Experts | QuantizedExperts):
            yield from (f"{name}.gate_up_proj", f"{name}.down_proj")


def _as_named(target: str, targets: Sequence[str]) -> Iterator[str]:
    """Translate the names that gate and up projections have elsewhere."""
    if target.rpartition(".")[2] not in _FUSED:
        yield target
        return
    place = target.rpartition(".")[0]
    both = [f"{place}.{own}" if place else own for own in _FUSED]
    if not all(name in targets for name in both):
        problem = f"{target!r} is half of one product"
        raise SpecError("adapter.targets", problem, f"name {both[0]} and {both[1]}, or gate_up_proj")
    yield f"{place}.gate_up_proj" if place else "gate_up_proj"


def _below(name: str, part: str) -> bool:
    """Whether ``part`` is a run of whole components of a parameter's path."""
    return f".{part.removesuffix('.weight')}." in f".{name.removesuffix('.weight')}."


def _why_not(spec: ModelSpec, part: str) -> str:
    own = part.removesuffix(".weight").rpartition(".")[2]
    if own in ("lm_head", "embed_tokens"):
        return "is trained whole, not by a low-rank update (modules_to_save)"
    if own == "gate" and spec.moe is not None:
        return "is the router, which decides in float32 and stays as it is"
    if own == "vision" or part.startswith("vision."):
        return "belongs to the vision towers, which have no adapter"
    return f"is no linear layer of {spec.name}"


def _known(shapes: Mapping[str, Shape]) -> str:
    kinds = dict.fromkeys(name.removesuffix(".weight").rpartition(".")[2] for name in shapes)
    return f"use {ALL_LINEAR}, or some of {', '.join(kinds)}"
