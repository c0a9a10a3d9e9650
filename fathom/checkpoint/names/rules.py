"""Rules: one parameter, and the Hugging Face tensors it splits into and is assembled from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from fathom.checkpoint.allocation import empty_cpu_tensor
from fathom.checkpoint.names.gate_up import joined_shape
from fathom.checkpoint.names.tables import LAYERS, MTP, OUTSIDE
from fathom.checkpoint.names.vision import FAMILIES as VISION_FAMILIES
from fathom.checkpoint.names.vision import published_vision
from fathom.errors import CheckpointError
from fathom.model.build import Shape, parameter_shapes
from fathom.spec import ModelSpec

Lookup = Callable[[str], Tensor]


@dataclass(frozen=True, slots=True)
class Rule:
    """The parameter ``param_name`` of ``shape`` is the Hugging Face tensors ``published``.

    Each row holds the names whose tensors are concatenated along a dimension; there is one row per expert when
    ``stacked`` (the parameter's first dimension), otherwise one row.
    """

    param_name: str
    shape: Shape
    published: tuple[tuple[str, ...], ...]
    stacked: bool = False

    @property
    def part_shape(self) -> Shape:
        """Shape of each published tensor."""
        joined = joined_shape(self.param_name, self.shape)
        slab = joined[1:] if self.stacked else joined
        return (slab[0] // len(self.published[0]), *slab[1:])

    @property
    def names(self) -> Iterator[str]:
        """Every published name, in order."""
        return (name for row in self.published for name in row)

    def split(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield Hugging Face names with views of the parameter: no copies."""
        tensor = tensor.reshape(joined_shape(self.param_name, self.shape))
        for index, row in enumerate(self.published):
            slab = tensor[index] if self.stacked else tensor
            rows = self.part_shape[0]
            yield from ((name, slab.narrow(0, place * rows, rows)) for place, name in enumerate(row))

    def assemble(self, lookup: Lookup, dtype: torch.dtype) -> Tensor:
        """Build the parameter in ``dtype``; at most one Hugging Face tensor is held beside it.

        A single one of that type is returned as it is.
        """
        if not self.stacked and len(self.published[0]) == 1:
            return lookup(self.published[0][0]).to(dtype)
        whole: Tensor | None = None
        for index, row in enumerate(self.published):
            for place, name in enumerate(row):
                part = lookup(name)
                if whole is None:
                    whole = _empty(self.shape, dtype, part.device)
                joined = whole.view(joined_shape(self.param_name, self.shape))
                slab = joined[index] if self.stacked else joined
                slab.narrow(0, place * part.shape[0], part.shape[0]).copy_(part)
                del part
        if whole is None:
            raise CheckpointError(f"{self.param_name}: has no published tensors; give the model at least one expert")
        return whole

    def dtype(self, dtypes: Callable[[str], torch.dtype]) -> torch.dtype:
        """Return the type that holds all published parts exactly, given the type of each."""
        return reduce(torch.promote_types, {dtypes(name): None for name in self.names})


def _empty(shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    return empty_cpu_tensor(shape, dtype) if device.type == "cpu" else torch.empty(shape, dtype=dtype, device=device)


@dataclass(frozen=True, slots=True)
class DuplicateTensor:
    """A Hugging Face tensor that duplicates ``param_name``: compared and dropped on reading, written if ``written``."""

    published: str
    param_name: str
    shape: Shape
    written: bool


def rules(spec: ModelSpec) -> tuple[Rule, ...]:
    """One rule per parameter, in the order of the state dict; ``CheckpointError`` where the family has no name."""
    found, nameless = [], []
    for param_name, shape in parameter_shapes(spec).items():
        parts = _published(spec, param_name)
        if parts is None:
            nameless.append(param_name)
            continue
        stacked = "{e}" in parts[0]
        experts = range(shape[0] if stacked else 1)
        found.append(
            Rule(param_name, shape, tuple(tuple(p.replace("{e}", str(e)) for p in parts) for e in experts), stacked)
        )
    if nameless:
        more = f" and {len(nameless) - 1} more" if len(nameless) > 1 else ""
        raise CheckpointError(
            f"family {spec.family!r} publishes no tensor for {nameless[0]}{more}; choose the family that fits the spec"
        )
    return tuple(found)


def duplicate_tensors(spec: ModelSpec) -> tuple[DuplicateTensor, ...]:
    """Published tensors that repeat others: the tied head, and what multi-token prediction shares with the model."""
    shape = (spec.vocab_size, spec.hidden_size)
    head = "embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"
    found = [DuplicateTensor("lm_head.weight", head, shape, written=False)] if spec.tie_word_embeddings else []
    for index in range(spec.num_nextn_predict_layers):
        prefix = f"model.layers.{spec.num_hidden_layers + index}"
        found.append(DuplicateTensor(f"{prefix}.embed_tokens.weight", "embed_tokens.weight", shape, written=True))
        found.append(DuplicateTensor(f"{prefix}.shared_head.head.weight", head, shape, written=True))
    return tuple(found)


def _published(spec: ModelSpec, param_name: str) -> tuple[str, ...] | None:
    """Return the Hugging Face names of a parameter, with ``{e}`` unfilled; None when the family has none."""
    if spec.family in VISION_FAMILIES or param_name.startswith("vision."):
        return published_vision(spec, param_name)
    if param_name in OUTSIDE:
        return OUTSIDE[param_name]
    part, number, inner = param_name.split(".", 2)
    index = int(number)
    if part == "layers":
        names = LAYERS[spec.family].get(inner)
    else:
        index += spec.num_hidden_layers
        table = MTP.get(spec.family, {})
        block = LAYERS[spec.family] if table else {}
        names = block.get(inner.removeprefix("block.")) if inner.startswith("block.") else table.get(inner)
    return None if names is None else tuple(f"model.layers.{index}.{name}" for name in names)
