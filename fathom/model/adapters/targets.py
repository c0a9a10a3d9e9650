"""Which parameters of a decoder an adapter is for, and what is left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from fathom.errors import SpecError
from fathom.model.build import Shape
from fathom.model.decoder import Decoder
from fathom.model.ffn import GateUpLinear
from fathom.model.linear import Linear
from fathom.model.moe import Experts
from fathom.model.moe.router import Router
from fathom.model.quantized import QuantizedExperts, QuantizedLinear
from fathom.spec.adapter import ALL_LINEAR, FUSED, LoraSpec, fused_target, names_layer
from fathom.spec.model import ModelSpec

_LAYERS = "layers."


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
    parts = [_whole(target, lora.targets) for target in lora.targets]
    for part in parts:
        if not any(names_layer(part, name) for name in shapes):
            raise SpecError("adapter.targets", f"{part!r} {_why_not(spec, part)}", _known(shapes))
    return [name for name in shapes if any(names_layer(part, name) for part in parts)]


def left_out(model: Decoder, lora: LoraSpec, others: Sequence[str]) -> Iterator[str]:
    """Say what of a model is not adapted, and why: a phrase for each kind; ``others`` could be targets and are none."""
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
    if others:
        yield f"{len(others)} layers that targets does not name ({_kinds(others)})"


def _whole(target: str, targets: Sequence[str]) -> str:
    """Return a target as ``fused_target`` does; a gate or up projection without the other is refused."""
    place, dot, own = target.rpartition(".")
    both = [f"{place}{dot}{half}" for half in FUSED]
    if own in FUSED and not all(name in targets for name in both):
        problem = f"{target!r} is half of one product"
        raise SpecError("adapter.targets", problem, f"name {both[0]} and {both[1]}, or gate_up_proj")
    return fused_target(target)


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
    return f"use {ALL_LINEAR}, or some of {_kinds(shapes)}"


def _kinds(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(name.removesuffix(".weight").rpartition(".")[2] for name in names))
