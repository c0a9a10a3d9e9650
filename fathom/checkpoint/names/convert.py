"""Convert state dicts between Fathom's names and a family's Hugging Face names, strictly and one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.checkpoint.names.rules import DuplicateTensor, Lookup, Rule, duplicate_tensors, rules
from fathom.checkpoint.names.vision import FAMILIES as VISION_FAMILIES
from fathom.checkpoint.names.vision import current_name
from fathom.errors import CheckpointError
from fathom.model.build import Shape
from fathom.spec import Family, ModelSpec

_LISTED = 20
"""Tensors of each kind of fault that an error lists."""


@dataclass(frozen=True, slots=True)
class NameTable:
    """All rules of one model: a bijection between parameters and Hugging Face tensors, plus duplicates."""

    family: Family
    rules: tuple[Rule, ...]
    duplicates: tuple[DuplicateTensor, ...]

    def our_shapes(self) -> dict[str, Shape]:
        """Parameter names and shapes."""
        return {rule.param_name: rule.shape for rule in self.rules}

    def hf_shapes(self) -> dict[str, Shape]:
        """Names and shapes that a published checkpoint holds, written repeats included."""
        shapes = {name: rule.part_shape for rule in self.rules for name in rule.names}
        return shapes | {copy.published: copy.shape for copy in self.duplicates if copy.written}

    def pieces(self) -> Iterator[tuple[Rule, tuple[str, ...], tuple[str, ...]]]:
        """Yield each rule with the names its tensor is written under: the parts, and whole repeats of it."""
        repeats: dict[str, tuple[str, ...]] = {}
        for copy in self.duplicates:
            if copy.written:
                repeats[copy.param_name] = (*repeats.get(copy.param_name, ()), copy.published)
        for rule in self.rules:
            yield rule, tuple(rule.names), repeats.get(rule.param_name, ())

    def check_ours(self, shapes: Mapping[str, Shape]) -> None:
        """Raise one ``CheckpointError`` listing all missing, unexpected and wrongly shaped parameters."""
        faults = _faults(self.our_shapes(), {}, shapes)
        if faults:
            raise CheckpointError(
                f"the state does not fit this {self.family} spec: {faults}; build the model from the same spec, "
                "or open it with plain weights: packed ones are in no state"
            )

    def check_hf(self, shapes: Mapping[str, Shape]) -> None:
        """Raise one ``CheckpointError`` listing all missing, unexpected and wrongly shaped published tensors.

        Repeats may be absent; stored rotary frequencies (``rotary_emb.inv_freq``) are ignored. Names that an older
        transformers wrote are as good as those of ``rules``.
        """
        needed = {name: rule.part_shape for rule in self.rules for name in rule.names}
        optional = {copy.published: copy.shape for copy in self.duplicates}
        stored = self.stored_names(shapes)
        found = {name: shapes[old] for name, old in stored.items() if not name.endswith("rotary_emb.inv_freq")}
        faults = _faults(needed, optional, found)
        if faults:
            raise CheckpointError(
                f"the checkpoint does not fit this {self.family} spec: {faults}; {self._remedy(needed, found)}"
            )

    def stored_names(self, stored: Collection[str]) -> dict[str, str]:
        """Map the published names we know to the names under which a checkpoint stores them."""
        if self.family not in VISION_FAMILIES:
            return {name: name for name in stored}
        renamed = {name: current_name(name) for name in stored}
        return {(name if new in renamed else new): name for name, new in renamed.items()}

    def _remedy(self, needed: Mapping[str, Shape], found: Mapping[str, Shape]) -> str:
        if any(name.endswith("weight_scale_inv") for name in found):
            return "scales go with FP8 weights; open the directory that holds both"
        mtp = {name for rule in self.rules if rule.param_name.startswith("mtp.") for name in rule.names}
        if mtp and mtp == needed.keys() - found.keys():
            return "set num_nextn_predict_layers to 0, for the weights lack the multi-token-prediction modules"
        return "use the config.json that belongs to these weights"


def name_table(spec: ModelSpec) -> NameTable:
    """Make the table of one model; ``CheckpointError`` when its family cannot publish it."""
    return NameTable(spec.family, rules(spec), duplicate_tensors(spec))


def to_hf(spec: ModelSpec, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and split a state dict into Hugging Face tensors: views of it, no copies."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return dict(stream_to_hf(spec, shapes, state.__getitem__))


def from_hf(spec: ModelSpec, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename, join and stack Hugging Face tensors into a state dict; see ``stream_from_hf``."""
    shapes = {name: tuple(tensor.shape) for name, tensor in published.items()}
    return dict(stream_from_hf(spec, shapes, published.__getitem__, lambda name: published[name].dtype))


def stream_to_hf(spec: ModelSpec, shapes: Mapping[str, Shape], lookup: Lookup) -> Iterator[tuple[str, Tensor]]:
    """Yield Hugging Face tensors one by one, after checking that ``shapes`` is the whole state dict.

    ``lookup`` is called once per parameter; its duplicates follow it.
    """
    table = name_table(spec)
    table.check_ours(shapes)
    for rule, _, repeats in table.pieces():
        tensor = lookup(rule.param_name)
        yield from rule.split(tensor)
        yield from ((name, tensor) for name in repeats)
        del tensor


def stream_from_hf(
    spec: ModelSpec,
    shapes: Mapping[str, Shape],
    lookup: Lookup,
    dtypes: Callable[[str], torch.dtype],
) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters one by one, after checking that ``shapes`` is the whole Hugging Face checkpoint.

    ``lookup`` reads one Hugging Face tensor, and ``dtypes`` gives its type beforehand: parts of different types are
    promoted to a common one. At most one parameter and one Hugging Face tensor are held at a time. A duplicate that
    differs from its original raises ``CheckpointError``.
    """
    table = name_table(spec)
    table.check_hf(shapes)
    stored = table.stored_names(shapes)
    for rule in table.rules:
        tensor = rule.assemble(lambda name: lookup(stored[name]), rule.dtype(lambda name: dtypes(stored[name])))
        for copy in table.duplicates:
            if (
                copy.param_name == rule.param_name
                and copy.published in shapes
                and not _equal(lookup(copy.published), tensor)
            ):
                raise CheckpointError(
                    f"{copy.published}: differs from {rule.published[0][0]}, which the spec shares with it; "
                    "use the config.json that belongs to these weights"
                )
        yield rule.param_name, tensor
        del tensor


def _equal(copy: Tensor, source: Tensor) -> bool:
    kind = torch.promote_types(copy.dtype, source.dtype)
    return copy.is_meta or source.is_meta or torch.equal(copy.to(kind), source.to(kind))


def _faults(needed: Mapping[str, Shape], optional: Mapping[str, Shape], found: Mapping[str, Shape]) -> str:
    known = {**optional, **needed}
    missing = [name for name in needed if name not in found]
    unexpected = [name for name in found if name not in known]
    wrong = [
        f"{name} is {_size(found[name])} instead of {_size(shape)}"
        for name, shape in known.items()
        if name in found and tuple(found[name]) != shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
    return ", ".join(f"{len(names)} {kind} ({_abbreviated(names)})" for kind, names in kinds if names)


def _size(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _abbreviated(names: list[str]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
