"""Write weights as one GGUF file that llama.cpp opens, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fathom.checkpoint.gguf.blocks import BLOCK_FORMATS, QuantType, quantize
from fathom.checkpoint.gguf.keys import Metadata
from fathom.checkpoint.gguf.metadata import metadata_from_spec
from fathom.checkpoint.gguf.names import gguf_rules
from fathom.checkpoint.gguf.rope import ROPE_FACTORS, rope_factors
from fathom.checkpoint.gguf.tensor_types import FILE_TYPES, stored_kinds
from fathom.checkpoint.gguf.write_tokens import metadata_from_tokenizer
from fathom.checkpoint.weights import Weights
from fathom.checkpoint.writeback import WritebackFile
from fathom.errors import CheckpointError, FathomError
from fathom.files import publish_file
from fathom.model.build import Shape
from fathom.progress import NULL_PROGRESS, Progress
from fathom.spec import Llama3Scaling, ModelSpec
from fathom.tokenizer.bpe import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

_LARGEST_HALF = 65504.0
_BYTES: Mapping[str, tuple[int, int]] = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2)}
_QUANTIZATION_VERSION = 2


def write_gguf(
    path: Path,
    weights: Weights,
    *,
    kind: QuantType,
    tokenizer: Tokenizer | None = None,
    progress: Progress = NULL_PROGRESS,
) -> Path:
    """Write a file and return its path; ``conversion_warnings`` says beforehand what it cannot store.

    About one parameter and its stored bytes are held in memory.

    Args:
        path: where it appears; nothing may exist there.
        weights: the model, read once.
        kind: the type of most tensors; see ``stored_kinds`` for the others.
        tokenizer: stored inside; without one the file holds ids only.
        progress: receives the bytes written.

    Raises:
        CheckpointError: the file exists, a weight is beyond float16, the gguf package is missing.
        SpecError: llama.cpp has no architecture for the spec.
        ResourceError: the disk is full or refuses; nothing appears.
    """
    if path.exists():
        raise CheckpointError(f"{path}: already exists; choose a new name or remove it first")
    spec = weights.spec
    metadata = _metadata(spec, kind, tokenizer)
    kinds = stored_kinds(spec, kind)
    with publish_file(path) as temporary:
        _write(temporary, metadata, weights, kinds, progress)
    return path


def _metadata(spec: ModelSpec, kind: QuantType, tokenizer: Tokenizer | None) -> Metadata:
    tokens: Metadata = {"tokenizer.ggml.model": ("STRING", "none")}
    if tokenizer is not None:
        tokens = metadata_from_tokenizer(tokenizer, spec)
    return {
        **metadata_from_spec(spec),
        "general.file_type": ("UINT32", FILE_TYPES[kind]),
        "general.quantization_version": ("UINT32", _QUANTIZATION_VERSION),
        **tokens,
    }


def _write(
    path: Path, metadata: Metadata, weights: Weights, kinds: Mapping[str, QuantType], progress: Progress
) -> None:
    extra = _extra(weights.spec)
    total, start, alignment = _write_header(path, metadata, weights.spec, extra, kinds)
    done = 0
    with FileIO(path, "r+") as file:
        output, place = WritebackFile(file), start
        for name, tensor in _stored(weights, extra):
            packed = _packed(name, tensor, kinds.get(name, "F32"))
            output.write(place, packed.reshape(-1).view(np.uint8).data)
            place += -(-packed.nbytes // alignment) * alignment
            done += packed.nbytes
            progress.update(done, total, "bytes", phase="write")
            del packed, tensor  # else they would be held beside the next ones
        file.truncate(place)


def _write_header(
    path: Path, metadata: Metadata, spec: ModelSpec, extra: Mapping[str, Tensor], kinds: Mapping[str, QuantType]
) -> tuple[int, int, int]:
    """Write all that goes before the tensors; returns their bytes, the place of the first, and their alignment."""
    writer = _open(path, metadata)
    try:
        shapes = {name: shape for rule in gguf_rules(spec) for name, shape in rule.shapes.items()}
        total = sum(_add(writer, name, tuple(tensor.shape), "F32") for name, tensor in extra.items())
        total += sum(_add(writer, name, shape, kinds[name]) for name, shape in shapes.items())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        alignment = writer.data_alignment
    finally:
        writer.close()
    return total, -(-path.stat().st_size // alignment) * alignment, alignment


def _open(path: Path, metadata: Metadata) -> GGUFWriter:
    try:
        from gguf import GGUFValueType, GGUFWriter
    except ImportError:
        raise CheckpointError("gguf: the package is not installed; pip install 'fathom-lm[gguf]'") from None
    writer = GGUFWriter(path, metadata["general.architecture"][1])
    for key, (kind, value) in metadata.items():
        if key == "general.architecture":
            continue  # the writer has it already
        name, listed, _ = kind.partition("[]")
        if listed:
            writer.add_key_value(key, value, GGUFValueType.ARRAY, sub_type=GGUFValueType[name])
        else:
            writer.add_key_value(key, value, GGUFValueType[name])
    return writer


def _extra(spec: ModelSpec) -> dict[str, Tensor]:
    """Return the tensors that follow from the spec alone."""
    scaling = spec.rope.scaling
    if not isinstance(scaling, Llama3Scaling):
        return {}
    return {ROPE_FACTORS: rope_factors(scaling, spec.rope.theta, spec.attention.rope_dim)}


def _add(writer: GGUFWriter, name: str, shape: Shape, kind: QuantType) -> int:
    """Announce a tensor; returns its bytes."""
    from gguf import GGMLQuantizationType

    elements, width = _BYTES.get(kind) or (BLOCK_FORMATS[kind].elements, BLOCK_FORMATS[kind].nbytes)
    nbytes = math.prod(shape) // elements * width
    writer.add_tensor_info(name, shape, np.dtype(np.float32), nbytes, raw_dtype=GGMLQuantizationType[kind])
    return nbytes


def _stored(weights: Weights, extra: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the stored tensors in the order they were announced."""
    yield from extra.items()
    stream = weights.stream()
    for rule in gguf_rules(weights.spec):
        param_name, tensor = next(stream, (None, torch.empty(0)))
        if param_name != rule.param_name or tuple(tensor.shape) != rule.shape:
            raise CheckpointError(f"{rule.param_name}: expected next, got {param_name}; use weights that fit the spec")
        yield from rule.split(tensor)


def _packed(name: str, tensor: Tensor, kind: QuantType) -> npt.NDArray[Any]:
    """Return the bytes of one stored tensor."""
    tensor = tensor.detach()
    if kind == "F16" and max(map(abs, torch.stack(tensor.aminmax()).tolist())) > _LARGEST_HALF:
        raise CheckpointError(f"{name}: holds numbers beyond float16; write BF16 or F32")
    try:
        packed = quantize(tensor.reshape(-1, tensor.shape[-1]), kind)
    except FathomError as error:
        raise CheckpointError(f"{name}: {error}") from None
    return packed.reshape(*tensor.shape[:-1], -1)
