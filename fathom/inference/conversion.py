"""Conversion: a checkpoint of any form streamed into another, in bounded memory.

``Conversion.plan`` says what will be lost and refuses what cannot be before a byte is written; ``run`` writes. Types
are kept where the other form has them; what would become infinite in the type asked for is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fathom.checkpoint.fathom_checkpoint import FathomCheckpoint, write_fathom
from fathom.checkpoint.hf import HFCheckpoint, write_hf
from fathom.checkpoint.hf.files import TOKENIZER
from fathom.checkpoint.read_ahead import read_ahead
from fathom.checkpoint.weights import Weights, WeightSource
from fathom.errors import CheckpointError, Interrupted, SpecError
from fathom.inference.conversion_dtypes import FLOATS, dtype_warnings, largest, lossless_dtype, resolve_target_dtype
from fathom.inference.conversion_warnings import FORMS, CheckpointFormat, conversion_warnings, obstacle
from fathom.model.build import parameter_shapes
from fathom.progress import NULL_PROGRESS, Progress
from fathom.spec import ModelSpec
from fathom.tokenizer.bpe import Tokenizer
from fathom.train.signals import StopRequest

SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Conversion:
    """A conversion that can be done. ``kind`` is the type of its matrices; None keeps each tensor's own."""

    source: WeightSource
    destination: Path
    form: CheckpointFormat
    kind: str | None
    max_shard_bytes: int
    notes: tuple[str, ...]

    @classmethod
    def plan(
        cls,
        source: WeightSource,
        destination: Path,
        form: str,
        *,
        dtype: str | None = None,
        max_shard_bytes: int | None = None,
    ) -> Conversion:
        """Check a conversion and note what it loses; nothing is read but headers.

        Raises:
            SpecError: a form or type that there is not, or a model that the form cannot express.
            CheckpointError: the destination exists.
        """
        known = next((one for one in FORMS if one == form), None)
        if known is None:
            raise SpecError("--to", f"unknown form {form!r}", f"use {', '.join(FORMS)}")
        if max_shard_bytes is not None and (known != "hf" or max_shard_bytes <= 0):
            problem = f"{max_shard_bytes} for form {known}"
            raise SpecError("--max-shard-bytes", problem, "give a number above 0, and only with --to hf")
        kind = resolve_target_dtype(known, dtype) if dtype is not None else lossless_dtype(source, known)
        if destination.exists():
            raise CheckpointError(f"{destination}: already exists; choose a new place or remove it first")
        unsupported = obstacle(source, known)
        if unsupported is not None:
            raise SpecError(
                "--to", f"{source.spec.name} cannot be written as {known} ({unsupported})", "use another form"
            )
        notes = (*dtype_warnings(source, known, kind), *conversion_warnings(source, known, kind))
        return cls(source, destination, known, kind, max_shard_bytes or SHARD_BYTES, notes)

    def run(self, progress: Progress = NULL_PROGRESS) -> Path:
        """Write it and return its place.

        SIGINT and SIGTERM end the conversion between two tensors, and nothing of it stays.

        Raises:
            CheckpointError: the source is damaged, or holds a number that the type asked for does not reach.
            ResourceError: the disk is full or refuses; nothing appears.
            Interrupted: a signal arrived.
        """
        with StopRequest() as stop:
            weights = _CheckedWeights(self.source, self.kind, self.form, stop)
            if self.form == "gguf":
                return self._write_gguf(weights, progress)
            files = _tokenizer(self.source)
            if self.form == "fathom":
                return write_fathom(
                    self.destination,
                    weights,
                    tokenizer=files,
                    carried=self.source.carried,
                    eos_ids=self.source.eos_ids,
                    dtype=None if self.kind is None else FLOATS[self.kind],
                    progress=progress,
                )
            return write_hf(
                self.destination,
                weights,
                carried=self.source.carried,
                tokenizer=files,
                dtype="fp8" if self.kind == "fp8" else None if self.kind is None else FLOATS[self.kind],
                eos_ids=self.source.eos_ids,
                max_shard_bytes=self.max_shard_bytes,
                progress=progress,
            )

    def _write_gguf(self, weights: Weights, progress: Progress) -> Path:
        from fathom.checkpoint.gguf import write_gguf

        kind = next(kind for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0") if kind == self.kind)
        return write_gguf(self.destination, weights, kind=kind, tokenizer=self.source.tokenizer(), progress=progress)


COMPUTED = ("Q8_0", "Q4_0", "fp8")
"""Kinds whose making takes longer than reading and writing."""


@dataclass(frozen=True, slots=True)
class _CheckedWeights:
    """Weights on their way: numbers beyond the coming type are refused, and a signal ends the stream."""

    source: Weights
    kind: str | None
    form: CheckpointFormat
    stop: StopRequest

    @property
    def spec(self) -> ModelSpec:
        return self.source.spec

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        return self.source.dtypes

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._read():
            if self.stop.signal_name is not None:
                raise Interrupted(f"{self.stop.signal_name}: conversion stopped; nothing was written")
            self._check(name, tensor)
            yield name, tensor
            del tensor  # else it would lie beside the next one

    def _read(self) -> Iterator[tuple[str, Tensor]]:
        """Read ahead where the disk is what takes time; quantizing needs the processor to itself."""
        if self.kind in COMPUTED:
            return self.source.stream()
        shapes = parameter_shapes(self.spec)
        return read_ahead(
            self.source.stream(), [math.prod(shapes[name]) * dtype.itemsize for name, dtype in self.dtypes.items()]
        )

    def _check(self, name: str, tensor: Tensor) -> None:
        limit = largest(self.kind)
        kept_whole = self.form == "gguf" and (tensor.dim() < 2 or name.endswith(".bias"))
        if limit is None or kept_whole or not tensor.numel():
            return
        low, high = (float(end) for end in torch.aminmax(tensor))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CheckpointError(f"{name}: holds NaN or infinity, which {self.kind} cannot keep; repair the weights")
        if max(-low, high) > limit:
            raise CheckpointError(
                f"{name}: holds {max(low, high, key=abs):g}, beyond {self.kind}'s {limit:g}; "
                "use bfloat16 or float32 instead"
            )


def _tokenizer(source: WeightSource) -> Tokenizer | Path | None:
    """The tokenizer's files where there are any, so that they are copied as they are."""
    if isinstance(source, FathomCheckpoint):
        return source.tokenizer_directory
    if isinstance(source, HFCheckpoint):
        return source.path if (source.path / TOKENIZER).is_file() else None
    return source.tokenizer()
