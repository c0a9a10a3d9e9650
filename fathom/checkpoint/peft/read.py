"""Read PEFT's adapters: the updates of published layers, put together as those of Fathom's parameters.

X outputs and Y inputs of one matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fathom.checkpoint.names import NameTable, Rule, name_table
from fathom.checkpoint.peft.config import WEIGHTS, PeftConfig
from fathom.checkpoint.peft.places import PREFIX, Place, module_places, stacked_places
from fathom.checkpoint.tensorfile import TensorFile
from fathom.errors import CheckpointError
from fathom.logs import listed
from fathom.model.adapters.adapter import Adapter, LowRank
from fathom.spec import ModelSpec

_FACTORS = (".lora_A", ".lora_B")


_Parts = dict[tuple[int, ...], LowRank]
"""Updates of single matrices, by their index in a parameter."""


def read_peft(directory: Path, spec: ModelSpec) -> Adapter:
    """Read an adapter of the model that ``spec`` describes.

    Raises:
        CheckpointError: it is damaged, uses options that Fathom does not compute, or is of another model, shape or
            rank; all layers that do not fit are listed.
    """
    config = PeftConfig.read(directory)
    file = TensorFile.open(_weights(directory))
    table = name_table(spec)
    places, stacks = module_places(table), stacked_places(table)
    pairs, whole, strange = _sorted(file, table)
    parts: dict[str, _Parts] = {}
    rules: dict[str, Rule] = {}
    faults = [f"{name} is no layer that is adapted" for name in strange]
    for module, (a, b) in pairs.items():
        try:
            place, found = _parts_of(module, a, b, config, places, stacks)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        rules[place.param_name] = place
        parts.setdefault(place.param_name, {}).update(found)
    if faults:
        raise CheckpointError(
            f"{directory}: does not fit {spec.name}, {listed(faults, 3)}; use the model that it was trained on"
        )
    if not pairs and not whole:
        raise CheckpointError(f"{directory}: {WEIGHTS} holds no update of a layer; give a complete adapter")
    return Adapter({name: _joined(rules[name], found) for name, found in parts.items()}, whole)


def _weights(directory: Path) -> Path:
    path = directory / WEIGHTS
    if path.is_file():
        return path
    pickled = directory / "adapter_model.bin"
    if pickled.is_file():
        raise CheckpointError(f"{pickled}: is pickled, which can run code; save it again with PEFT, as {WEIGHTS}")
    raise CheckpointError(f"{directory}: holds no {WEIGHTS}; give a complete adapter")


def _sorted(
    file: TensorFile, table: NameTable
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor], list[str]]:
    """Return A and B by layer, tensors that replace parameters, and names that are neither."""
    replaceable = {rule.published[0][0]: rule.param_name for rule in table.rules if _is_outside(rule)}
    if "lm_head.weight" not in replaceable:
        replaceable["lm_head.weight"] = "embed_tokens.weight"
    factors: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    strange: list[str] = []
    for stored in file.entries:
        name = stored.removeprefix(PREFIX)
        module, factor = _factor(name)
        if factor is not None:
            factors.setdefault(module, {})[factor] = file.read(stored)
        elif name in replaceable:
            whole[replaceable[name]] = file.read(stored)
        else:
            strange.append(name)
    strange += [f"{module} (A or B alone)" for module, pair in factors.items() if len(pair) != 2]
    return {m: (pair["A"], pair["B"]) for m, pair in factors.items() if len(pair) == 2}, whole, strange


def _is_outside(rule: Rule) -> bool:
    return rule.param_name in ("embed_tokens.weight", "lm_head.weight")


def _factor(name: str) -> tuple[str, str | None]:
    for end in _FACTORS:
        if name.endswith(f"{end}.weight"):
            return name.removesuffix(f"{end}.weight"), end[-1]
    return name, None


def _parts_of(
    module: str,
    a: Tensor,
    b: Tensor,
    config: PeftConfig,
    places: Mapping[str, Place],
    stacks: Mapping[str, Mapping[str, Rule]],
) -> tuple[Rule, _Parts]:
    experts = module.removesuffix(".base_layer")
    if experts in stacks:
        return _stacked(experts, a, b, config, stacks[experts])
    place = places.get(module)
    if place is None:
        raise CheckpointError(f"the model has no linear layer {module}")
    _check_shapes(module, a, b, place.rule.part_shape, config.rank_of(module))
    return place.rule, {place.index: LowRank(a, b, config.scaling_of(module))}


def _stacked(module: str, a: Tensor, b: Tensor, config: PeftConfig, rules: Mapping[str, Rule]) -> tuple[Rule, _Parts]:
    """Take the update of stacked experts apart; which matrix it is for follows from its shape."""
    for own, rule in rules.items():
        fused, (outputs, inputs) = len(rule.published[0]), rule.part_shape
        if a.dim() != 2 or b.dim() != 2 or a.shape[1] != inputs or b.shape[0] != fused * outputs:
            continue
        name, experts = f"{module}.{own}", len(rule.published)
        rank = config.rank_of(name)
        if a.shape[0] != rank * experts or b.shape[1] != rank * experts:
            raise CheckpointError(f"{name} has {a.shape[0]} rows of A, not rank {rank} for {experts} experts")
        a_ErY, b_EXr = a.view(experts, rank, inputs), b.view(fused * outputs, rank, experts).permute(2, 0, 1)
        return rule, dict(_rows(a_ErY, b_EXr, fused, config.scaling_of(name)))
    raise CheckpointError(f"{module} has A of {tuple(a.shape)} and B of {tuple(b.shape)}, which fit neither matrix")


def _rows(a_ErY: Tensor, b_EXr: Tensor, fused: int, scaling: float) -> Iterator[tuple[tuple[int, ...], LowRank]]:
    """Yield the updates of every expert's matrices; of a fused pair in blocks, each its own half of the rank."""
    rank, outputs = a_ErY.shape[1], b_EXr.shape[1] // fused
    blocks = b_EXr.reshape(len(a_ErY), fused, outputs, rank)
    half = rank // fused
    apart = fused == 2 and rank % 2 == 0 and not (blocks[:, 0, :, half:].any() or blocks[:, 1, :, :half].any())
    for expert in range(len(a_ErY)):
        for row in range(fused):
            kept = slice(row * half, (row + 1) * half) if apart else slice(None)
            part = LowRank(a_ErY[expert, kept], blocks[expert, row, :, kept], scaling)
            yield (expert, row) if fused > 1 else (expert,), part


def _check_shapes(module: str, a: Tensor, b: Tensor, shape: tuple[int, ...], rank: int) -> None:
    outputs, inputs = shape
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != inputs or b.shape[0] != outputs:
        given = f"A of {tuple(a.shape)} and B of {tuple(b.shape)}"
        raise CheckpointError(f"{module} has {given} for a matrix of {outputs} x {inputs}")
    if a.shape[0] != rank or b.shape[1] != rank:
        raise CheckpointError(f"{module} has rank {a.shape[0]}, and the config says {rank}")


def _joined(rule: Rule, parts: _Parts) -> LowRank:
    """Join the parts of a parameter; those of a lower rank, and missing ones, are filled up with zeros."""
    rank = max(part.a.shape[0] for part in parts.values())
    first = next(iter(parts.values()))
    scaling, dtype = first.scaling, first.a.dtype
    *lead, outputs, inputs = rule.shape
    a, b = torch.zeros(*lead, rank, inputs, dtype=dtype), torch.zeros(*lead, outputs, rank, dtype=dtype)
    for index, part in parts.items():
        a[index][: part.a.shape[0]] = part.a
        b[index][:, : part.a.shape[0]] = part.b * (part.scaling / scaling)
    return LowRank(a, b, scaling)
