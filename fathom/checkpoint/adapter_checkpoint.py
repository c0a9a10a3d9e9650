"""Checkpoints of a step that trains an adapter: the adapter, its optimizer, and where its base model is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fathom.checkpoint import store
from fathom.checkpoint.hf.files import TOKENIZER
from fathom.checkpoint.sharded.index import index_name
from fathom.checkpoint.weights import StoredTensor, WeightSource
from fathom.errors import CheckpointError, SpecError, shortened
from fathom.files import sha256
from fathom.logs import listed
from fathom.model.adapters.adapter import Adapter
from fathom.model.adapters.attach import adapter_from_state
from fathom.model.build import parameter_shapes
from fathom.spec import ModelSpec, check, from_mapping
from fathom.spec.adapter import LoraSpec
from fathom.spec.hf import ExtraConfig
from fathom.tokenizer.bpe import Tokenizer

STEM = "adapter"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterBase:
    """The checkpoint of a run that an adapter was trained on: its step, its folder's name and its weights' SHA-256."""

    step: str
    checkpoint: str
    sha256: str

    def __post_init__(self) -> None:
        check.plain_name("step", self.step)
        check.plain_name("checkpoint", self.checkpoint)

    @classmethod
    def of(cls, step: str, checkpoint: Path) -> AdapterBase:
        """Refer to a checkpoint that a step of the same run left."""
        return cls(step=step, checkpoint=checkpoint.name, sha256=_weights_sha256(checkpoint))

    def find(self, run: Path) -> Path:
        """Return the checkpoint in its run; ``CheckpointError`` where it is gone or holds other weights now."""
        found = run / self.step / store.CHECKPOINTS / self.checkpoint
        if not (found / store.MANIFEST).is_file():
            raise CheckpointError(f"{found}: the adapter's base model is missing; restore it, or --restart the run")
        if _weights_sha256(found) != self.sha256:
            raise CheckpointError(f"{found}: is not the model that the adapter was trained on; --restart the run")
        return found


def _weights_sha256(checkpoint: Path) -> str:
    """Return the checksum of a checkpoint's weights; of sharded ones, that of all their files' checksums."""
    opened = store.Checkpoint.open(checkpoint, verify=False)
    files = opened.tensor_files(STEM) or opened.tensor_files("model") or ["model.safetensors"]
    found = [opened.sha256(name) for name in files]
    return found[0] if len(found) == 1 else sha256("\n".join(found))


@dataclass(frozen=True, slots=True)
class AdapterCheckpoint:
    """A checkpoint whose adapter was read; ``base`` is None where a library caller trained it outside a run."""

    path: Path
    spec: ModelSpec
    lora: LoraSpec
    adapter: Adapter
    base: AdapterBase | None

    @staticmethod
    def is_one(directory: Path) -> bool:
        """Whether a checkpoint holds an adapter in place of a model."""
        names = (f"{STEM}.safetensors", index_name(STEM))
        return any((directory / name).is_file() for name in names) and (directory / store.MANIFEST).is_file()

    @classmethod
    def open(cls, path: Path) -> AdapterCheckpoint:
        """Read one; ``CheckpointError`` where it is damaged, or its tensors do not fit its spec."""
        opened = store.Checkpoint.open(path)
        document = opened.document("spec")
        try:
            spec = from_mapping(ModelSpec, document["model"])
            lora = from_mapping(LoraSpec, document["train"]["adapter"])
            base = from_mapping(AdapterBase, document["base"]) if "base" in document else None
        except (SpecError, KeyError, TypeError) as error:
            problem = shortened(str(error))
            raise CheckpointError(f"{path}: its spec cannot be used ({problem}); use a newer Fathom") from None
        adapter = adapter_from_state(opened.tensors(STEM), lora.scaling)
        faults = adapter.faults(parameter_shapes(spec))
        if faults:
            raise CheckpointError(f"{path}: its spec and its tensors disagree, {listed(faults, 3)}; use a complete one")
        return cls(path, spec, lora, adapter, base)


@dataclass(frozen=True, slots=True)
class AdaptedWeights:
    """A model with an adapter merged into it as it is read: ``WeightSource`` like the base alone."""

    path: Path
    base: WeightSource
    adapter: Adapter

    @classmethod
    def of(cls, base: WeightSource, adapter: Adapter, path: Path) -> AdaptedWeights:
        """Merge an adapter, read from ``path``, into a model.

        Raises:
            CheckpointError: it is of another model.
        """
        faults = adapter.faults(parameter_shapes(base.spec))
        if faults:
            raise CheckpointError(
                f"{path}: is an adapter of another model than {base.path}, {listed(faults, 3)}; "
                "use it with the model it was trained on"
            )
        return cls(path, base, adapter)

    @property
    def spec(self) -> ModelSpec:
        """The base's spec."""
        return self.base.spec

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """The base's types."""
        return self.base.dtypes

    @property
    def form(self) -> str:
        """The base's format."""
        return self.base.form

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """The base's tensors."""
        return self.base.stored

    @property
    def carried(self) -> ExtraConfig | None:
        """What the base carries."""
        return self.base.carried

    @property
    def eos_ids(self) -> frozenset[int]:
        """The base's."""
        return self.base.eos_ids

    @property
    def tokenizer_directory(self) -> Path | None:
        """Where the adapter's own tokenizer files are."""
        return self.path if (self.path / TOKENIZER).is_file() else None

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer beside the adapter, or else the base's."""
        own = self.tokenizer_directory
        return self.base.tokenizer() if own is None else Tokenizer.load(own)

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the merged parameters: the sum is taken in float32 and rounded to the base's type."""
        for name, tensor in self.base.stream():
            yield name, self.adapter.merged(name, tensor)
            del tensor
