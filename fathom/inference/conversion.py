"""Conversion: streams a checkpoint of any format into another, in bounded memory.

``Conversion.prepare`` checks a conversion and lists its warnings before a byte is written; ``run`` writes. Dtypes are
kept where the target format has them; a tensor whose values overflow the target dtype is an error that names it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fathom.checkpoint.adapter_checkpoint import AdaptedWeights
from fathom.checkpoint.fathom_checkpoint import FathomCheckpoint, write_fathom
from fathom.checkpoint.hf import HFCheckpoint, write_hf
from fathom.checkpoint.hf.files import TOKENIZER
from fathom.checkpoint.read_ahead import read_ahead
from fathom.checkpoint.weights import Weights, WeightSource
from fathom.errors import CheckpointError, Interrupted, SpecError
from fathom.inference.conversion_dtypes import FLOATS, dtype_warnings, largest, lossless_dtype, resolve_target_dtype
from fathom.inference.conversion_warnings import FORMS, CheckpointFormat, conversion_warnings, unsupported_reason
from fathom.model.build import parameter_shapes
from fathom.progress import NULL_PROGRESS, Progress
from fathom.signals import StopRequest
from fathom.spec import ModelSpec
from fathom.tokenizer.bpe import Tokenizer

SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Conversion:
    """A checked conversion. ``dtype`` is that of its matrices; None keeps each tensor's own.

    ``split_max_bytes`` is the size above which a GGUF file is written as several; None never splits it.
    """

    source: WeightSource
    destination: Path
    format: CheckpointFormat
    dtype: str | None
    max_shard_bytes: int
    warnings: tuple[str, ...]
    split_max_bytes: int | None = None

    @classmethod
    def prepare(
        cls,
        source: WeightSource,
        destination: Path,
        format: str,
        *,
        dtype: str | None = None,
        max_shard_bytes: int | None = None,
        split_max_bytes: int | None = None,
    ) -> Conversion:
        """Check a conversion and list its warnings; only headers are read.

        Raises:
            SpecError: an unknown format or dtype, or a model that the format cannot express.
            CheckpointError: the destination exists.
        """
        known = next((one for one in FORMS if one == format), None)
        if known is None:
            raise SpecError("--to", f"unknown format {format!r}", f"use {', '.join(FORMS)}")
        if max_shard_bytes is not None and (known != "hf" or max_shard_bytes <= 0):
            problem = f"{max_shard_bytes} for format {known}"
            raise SpecError("--max-shard-bytes", problem, "give a number above 0, and only with --to hf")
        if split_max_bytes is not None and known != "gguf":
            problem = f"{split_max_bytes} for format {known}"
            raise SpecError("--split-max-size", problem, "give it with --to gguf; --to hf takes --max-shard-bytes")
        target = resolve_target_dtype(known, dtype) if dtype is not None else lossless_dtype(source, known)
        if destination.exists():
            raise CheckpointError(f"{destination}: already exists; choose a new place or remove it first")
        unsupported = unsupported_reason(source, known)
        if unsupported is not None:
            other = "hf" if known == "gguf" and unsupported_reason(source, "hf") is None else "fathom"
            problem = f"{source.spec.name} cannot be written as {known} ({unsupported})"
            raise SpecError("--to", problem, f"use --to {other}")
        warnings = (*dtype_warnings(source, known, target), *conversion_warnings(source, known, target))
        return cls(
            source,
            destination,
            known,
            target,
            max_shard_bytes or SHARD_BYTES,
            warnings,
            split_max_bytes=split_max_bytes,
        )

    def run(self, progress: Progress = NULL_PROGRESS) -> Path:
        """Write the checkpoint and return its path, or that of the first part of a split GGUF model.

        SIGINT and SIGTERM stop the conversion between two tensors; partial output is removed.

        Raises:
            CheckpointError: the source is damaged, or holds a number that overflows the target dtype.
            ResourceError: the disk is full or not writable; partial output is removed.
            Interrupted: a signal arrived.
        """
        with StopRequest() as stop:
            weights = _CheckedWeights(self.source, self.dtype, self.format, stop)
            if self.format == "gguf":
                return self._write_gguf(weights, progress)
            files = _tokenizer(self.source)
            if self.format == "fathom":
                return write_fathom(
                    self.destination,
                    weights,
                    tokenizer=files,
                    carried=self.source.carried,
                    eos_ids=self.source.eos_ids,
                    dtype=None if self.dtype is None else FLOATS[self.dtype],
                    progress=progress,
                )
            return write_hf(
                self.destination,
                weights,
                carried=self.source.carried,
                tokenizer=files,
                dtype="fp8" if self.dtype == "fp8" else None if self.dtype is None else FLOATS[self.dtype],
                eos_ids=self.source.eos_ids,
                max_shard_bytes=self.max_shard_bytes,
                progress=progress,
            )

    def _write_gguf(self, weights: Weights, progress: Progress) -> Path:
        from fathom.checkpoint.gguf import write_gguf

        kind = next(kind for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0") if kind == self.dtype)
        return write_gguf(
            self.destination,
            weights,
            kind=kind,
            tokenizer=self.source.tokenizer(),
            max_part_bytes=self.split_max_bytes,
            progress=progress,
        )


QUANTIZED_DTYPES = ("Q8_0", "Q4_0", "fp8")
"""Dtypes for which quantizing takes longer than reading and writing."""


@dataclass(frozen=True, slots=True)
class _CheckedWeights:
    """A stream of weights that raises where a number overflows the target dtype and after a signal."""

    source: Weights
    dtype: str | None
    format: CheckpointFormat
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
                raise Interrupted(f"{self.stop.signal_name} arrived; nothing was written")
            self._check(name, tensor)
            yield name, tensor
            del tensor  # free it before the next one is read

    def _read(self) -> Iterator[tuple[str, Tensor]]:
        """Read ahead where the disk is the bottleneck; quantizing is bound by the processor."""
        if self.dtype in QUANTIZED_DTYPES:
            return self.source.stream()
        shapes = parameter_shapes(self.spec)
        return read_ahead(
            self.source.stream(), [math.prod(shapes[name]) * dtype.itemsize for name, dtype in self.dtypes.items()]
        )

    def _check(self, name: str, tensor: Tensor) -> None:
        limit = largest(self.dtype)
        kept_whole = self.format == "gguf" and (tensor.dim() < 2 or name.endswith(".bias"))
        if limit is None or kept_whole or not tensor.numel():
            return
        low, high = (float(end) for end in torch.aminmax(tensor))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CheckpointError(f"{name}: holds NaN or infinity, which {self.dtype} cannot keep; repair the weights")
        if max(-low, high) > limit:
            raise CheckpointError(
                f"{name}: holds {max(low, high, key=abs):g}, beyond {self.dtype}'s {limit:g}; "
                "use bfloat16 or float32 instead"
            )


def _tokenizer(source: WeightSource) -> Tokenizer | Path | None:
    """Return the path of the tokenizer's files where there are any, so that they are copied unchanged."""
    if isinstance(source, AdaptedWeights):
        return source.tokenizer_directory or _tokenizer(source.base)
    if isinstance(source, FathomCheckpoint):
        return source.tokenizer_directory
    if isinstance(source, HFCheckpoint):
        return source.path if (source.path / TOKENIZER).is_file() else source.tokenizer()
    return source.tokenizer()
