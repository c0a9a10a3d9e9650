"""``Adapter``: low-rank updates by the names of the parameters they add to, whatever file they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fathom.model.build import Shape

_SLOTS = {"gate_up_proj": "gate_up_lora", "down_proj": "down_lora"}
"""Where stacked experts hold the update of each of their matrices."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """The update scaling x B A of one parameter: ``a`` is (..., r, inputs) and ``b`` (..., outputs, r)."""

    a: Tensor = field(repr=False)
    b: Tensor = field(repr=False)
    scaling: float

    @property
    def delta(self) -> Tensor:
        """What it adds to the parameter, float32."""
        return self.scaling * (self.b.float() @ self.a.float())

    @property
    def shape(self) -> Shape:
        """The parameter's shape."""
        return (*self.b.shape[:-1], self.a.shape[-1])


@dataclass(frozen=True, slots=True)
class Adapter:
    """Updates by parameter name, and parameters that are replaced ``whole`` (the head, the embedding)."""

    updates: Mapping[str, LowRank]
    whole: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        updates = sum(update.a.nbytes + update.b.nbytes for update in self.updates.values())
        return updates + sum(tensor.nbytes for tensor in self.whole.values())

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """Return a parameter with its update added, or replaced, in its own dtype; itself where there is neither."""
        if name in self.whole:
            return self.whole[name].to(weight.dtype)
        if name not in self.updates:
            return weight
        total = self.updates[name].delta.to(weight.device)
        return total.add_(weight).to(weight.dtype)

    def faults(self, shapes: Mapping[str, Shape]) -> list[str]:
        """Say what does not fit a model's parameters, one sentence for each."""
        found = [(name, update.shape) for name, update in self.updates.items()]
        found += [(name, tuple(tensor.shape)) for name, tensor in self.whole.items()]
        return [
            f"the model has no {name}"
            if name not in shapes
            else f"{name} is {shape} here and {shapes[name]} in the model"
            for name, shape in found
            if shapes.get(name) != shape
        ]


def slot_of(param_name: str) -> tuple[str, str]:
    """Return the module that holds the update of a parameter, and the attribute it is there."""
    module, _, own = param_name.rpartition(".")
    return (module, _SLOTS[own]) if own in _SLOTS else (module, "lora")


def parameter_of(state_name: str) -> tuple[str, str]:
    """Return the parameter that a tensor of a model's state belongs to, and whether it is its ``A`` or ``B``."""
    slot, _, factor = state_name.rpartition(".")
    module, _, own = slot.rpartition(".")
    for matrix, name in _SLOTS.items():
        if own == name:
            return f"{module}.{matrix}", factor
    return f"{module}.weight", factor


def cast(adapter: Adapter, dtype: torch.dtype, device: torch.device) -> Adapter:
    """Return the adapter with its tensors in a dtype and on a device."""
    updates = {
        name: LowRank(update.a.to(device, dtype), update.b.to(device, dtype), update.scaling)
        for name, update in adapter.updates.items()
    }
    return Adapter(updates, {name: tensor.to(device, dtype) for name, tensor in adapter.whole.items()})
