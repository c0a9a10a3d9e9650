"""``Weights``: the stream of parameters that every checkpoint format is read as and written from.

A source (a Hugging Face directory, a GGUF file, a Fathom checkpoint) yields parameters one by one; a destination
takes them one by one. So loading and converting hold one tensor beside the destination, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fathom.errors import CheckpointError
from fathom.model.decoder import Decoder
from fathom.progress import NULL_PROGRESS, Progress
from fathom.spec import ModelSpec
from fathom.spec.hf import ExtraConfig
from fathom.tokenizer.bpe import Tokenizer


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as a file holds it, under the file's own name; ``kind`` is the format's word: BF16, F8_E4M3, Q4_1."""

    name: str
    shape: tuple[int, ...]
    kind: str
    nbytes: int


class Weights(Protocol):
    """Parameters of one model in the order of ``parameter_shapes``; their types are known before they are read."""

    @property
    def spec(self) -> ModelSpec:
        """The model's spec."""
        ...

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """Parameter names in the order of ``stream``, and the types it yields them in."""
        ...

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Yield parameters one by one, on the CPU; the caller may keep or change each."""
        ...


class WeightSource(Weights, Protocol):
    """A checkpoint on disk whose headers were read and checked, but none of its tensors."""

    @property
    def path(self) -> Path:
        """Its path: a directory, or a GGUF file."""
        ...

    @property
    def form(self) -> str:
        """Its format: hf, gguf or fathom."""
        ...

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """Every tensor of the files, as the files name them."""
        ...

    @property
    def carried(self) -> ExtraConfig | None:
        """Fields of config.json beyond the spec; None for other formats."""
        ...

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end an answer: those of the generation config and of the config, or of the tokenizer."""
        ...

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer with its chat template, or None where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class StateWeights:
    """A state dict in memory, as ``Weights``."""

    spec: ModelSpec
    state: Mapping[str, Tensor] = field(repr=False)

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """Types by name."""
        return {name: tensor.dtype for name, tensor in self.state.items()}

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors, detached and on the CPU."""
        for name, tensor in self.state.items():
            yield name, tensor.detach().cpu()


def load_weights(model: Decoder, weights: Weights, progress: Progress = NULL_PROGRESS) -> None:
    """Copy streamed weights into a model's parameters and buffers, converting to their types.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    total = sum(tensor.nbytes for tensor in own.values())
    done, left = 0, dict.fromkeys(own)
    for name, tensor in weights.stream():
        if name not in left or own[name].shape != tensor.shape:
            raise CheckpointError(
                f"{name}: {tuple(tensor.shape)} does not fit the model; use the config of its weights"
            )
        with torch.no_grad():
            own[name].copy_(tensor)
        del left[name]
        done += own[name].nbytes
        progress.update(done, total, "bytes", phase="load")
        del tensor  # the stream makes the next one before the loop variable is rebound
    if left:
        raise CheckpointError(f"{next(iter(left))}: is missing, and {len(left) - 1} more; use a complete checkpoint")
