"""A GGUF model, in one file or in parts, as a source of weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from fathom.checkpoint.gguf.blocks import BLOCK_FORMATS, FLOATS
from fathom.checkpoint.gguf.metadata import spec_from_metadata
from fathom.checkpoint.gguf.names import GGUFRule, check
from fathom.checkpoint.gguf.rope import ROPE_FACTORS
from fathom.checkpoint.gguf.split import SplitContainer
from fathom.checkpoint.gguf.tokens import end_ids, tokenizer_from_metadata
from fathom.checkpoint.weights import StoredTensor
from fathom.errors import CheckpointError, DataError, SpecError
from fathom.spec import ModelSpec
from fathom.spec.hf import ExtraConfig
from fathom.tokenizer.bpe import Tokenizer

_LONGEST_FACTORS = 65536


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A file, or the parts of a split one, whose headers fit a model that Fathom builds; none of its tensors was read.

    ``path`` is the file or the first part. Quantized tensors stream as float32, those of 16 bits as they are stored.
    """

    path: Path
    spec: ModelSpec
    container: SplitContainer = field(repr=False)
    rules: tuple[GGUFRule, ...] = field(repr=False)
    form: str = "gguf"
    carried: ExtraConfig | None = None

    @classmethod
    def open(cls, path: Path) -> GGUFFile:
        """Read the header and check every name, shape and type; any part of a split model opens all of it.

        Raises:
            CheckpointError: a file is missing, damaged, or holds tensors that do not fit its metadata.
            SpecError: the metadata describes a model that Fathom cannot build.
        """
        container = SplitContainer.open(path)
        path = container.path
        shapes = {name: info.shape for name, info in container.tensors.items()}
        for info in container.tensors.values():
            if info.kind not in FLOATS and info.kind not in BLOCK_FORMATS:
                known = ", ".join([*FLOATS, *BLOCK_FORMATS])
                raise CheckpointError(f"{path}: {info.name} is of type {info.kind}; use a file of {known}")
        layers = container.metadata.get(f"{container.metadata.get('general.architecture')}.block_count")
        if isinstance(layers, int) and layers > len(shapes):  # before anything is made for each of them
            raise CheckpointError(f"{path}: block_count: {layers} layers cannot be {len(shapes)} tensors; get it again")
        try:
            spec = spec_from_metadata(container.metadata, shapes, _rope_factors(container))
            rules = check(spec, shapes)
        except SpecError as error:
            raise SpecError(f"{path}: {error.path}", error.problem, error.remedy) from None
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        return cls(path, spec, container, rules)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of all parts."""
        return self.container.files

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """Every tensor of the file, as the file names it."""
        return tuple(
            StoredTensor(info.name, info.shape, info.kind, info.nbytes) for info in self.container.tensors.values()
        )

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Parameter names and the types they are yielded in."""
        kinds = {name: FLOATS.get(info.kind, torch.float32) for name, info in self.container.tensors.items()}
        return {
            rule.param_name: reduce(torch.promote_types, (kinds[name] for name in rule.names)) for rule in self.rules
        }

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end a text, a turn or a message."""
        return end_ids(self.container.metadata)

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer inside, or None."""
        try:
            return tokenizer_from_metadata(self.container.metadata)
        except (CheckpointError, DataError) as error:
            raise type(error)(f"{self.path}: {error}") from None

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Yield parameters one by one, on the CPU."""
        with self.container.reading() as read:
            for rule in self.rules:
                yield rule.param_name, rule.assemble(read)


def _rope_factors(container: SplitContainer) -> list[float] | None:
    """Return the file's divisors of the rotary frequencies, where it has some."""
    info = container.tensors.get(ROPE_FACTORS)
    if info is None:
        return None
    if len(info.shape) != 1 or info.shape[0] > _LONGEST_FACTORS:
        raise CheckpointError(f"{container.path}: {ROPE_FACTORS} is of shape {info.shape}; get the file again")
    return [float(value) for value in container.read(ROPE_FACTORS)]
