"""Write weights as a GGUF file, or as the parts of a split one, that llama.cpp opens, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fathom.checkpoint.gguf.blocks import QuantType, quantize
from fathom.checkpoint.gguf.keys import Metadata
from fathom.checkpoint.gguf.metadata import metadata_from_spec
from fathom.checkpoint.gguf.names import gguf_rules
from fathom.checkpoint.gguf.part_names import part_path
from fathom.checkpoint.gguf.parts import PlannedTensor, aligned, plan_parts, split_metadata
from fathom.checkpoint.gguf.rope import ROPE_FACTORS, rope_factors
from fathom.checkpoint.gguf.tensor_types import FILE_TYPES, stored_kinds
from fathom.checkpoint.gguf.write_tokens import metadata_from_tokenizer
from fathom.checkpoint.weights import Weights
from fathom.checkpoint.writeback import WritebackFile
from fathom.errors import CheckpointError, FathomError
from fathom.extras import install_extra
from fathom.files import publish_files, remove_leftovers
from fathom.progress import NULL_PROGRESS, Progress
from fathom.spec import Llama3Scaling, ModelSpec
from fathom.tokenizer.bpe import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

_LARGEST_HALF = 65504.0
_QUANTIZATION_VERSION = 2


def write_gguf(
    path: Path,
    weights: Weights,
    *,
    kind: QuantType,
    tokenizer: Tokenizer | None = None,
    max_part_bytes: int | None = None,
    progress: Progress = NULL_PROGRESS,
) -> Path:
    """Write a file, or the parts of a split model, and return its path or that of the first part.

    ``conversion_warnings`` says beforehand what it cannot store. About one parameter and its stored bytes are held in
    memory.

    Args:
        path: where it appears; nothing may exist there.
        weights: the model, read once.
        kind: the type of most tensors; see ``stored_kinds`` for the others.
        tokenizer: stored inside; without one the file holds ids only.
        max_part_bytes: a larger model is split as llama.cpp's gguf-split does, into files beside ``path`` that are
            named NAME-00001-of-00009.gguf; None never splits.
        progress: receives the bytes written.

    Raises:
        CheckpointError: a file exists, a weight is beyond float16, the gguf package is missing.
        SpecError: llama.cpp has no architecture for the spec, or there would be too many parts.
        ResourceError: the disk is full or refuses; nothing appears.
    """
    metadata, extra = _metadata(weights.spec, kind, tokenizer), _extra(weights.spec)
    parts = plan_parts(_planned(weights.spec, extra, kind), metadata, max_part_bytes)
    count = len(parts)
    paths = [path] if count == 1 else [part_path(path, number, count) for number in range(1, count + 1)]
    remove_leftovers(path.parent, paths[0].name)  # parts that a killed process had renamed already
    present = next((each for each in (path, *paths) if each.exists()), None)
    if present is not None:
        raise CheckpointError(f"{present}: already exists; choose a new name or remove it first")
    with publish_files(paths) as temporaries:
        _write(temporaries, parts, metadata, weights, extra, progress)
    return paths[0]


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


def _planned(spec: ModelSpec, extra: Mapping[str, Tensor], kind: QuantType) -> list[PlannedTensor]:
    """Return all tensors in the order they are stored."""
    kinds = stored_kinds(spec, kind)
    planned = [PlannedTensor(name, tuple(tensor.shape), "F32") for name, tensor in extra.items()]
    shapes = (item for rule in gguf_rules(spec) for item in rule.shapes.items())
    return planned + [PlannedTensor(name, shape, kinds[name]) for name, shape in shapes]


def _write(
    paths: Sequence[Path],
    parts: Sequence[Sequence[PlannedTensor]],
    metadata: Metadata,
    weights: Weights,
    extra: Mapping[str, Tensor],
    progress: Progress,
) -> None:
    """Write all parts, one after another, from one stream of weights."""
    total = sum(planned.nbytes for part in parts for planned in part)
    tensor_count, done, stored = sum(map(len, parts)), 0, _stored(weights, extra)
    for number, (path, part) in enumerate(zip(paths, parts, strict=True)):
        own = metadata if number == 0 else {}
        numbers = split_metadata(number, len(parts), tensor_count) if len(parts) > 1 else {}
        place = _write_header(path, own | numbers, part)
        with FileIO(path, "r+") as file:
            output = WritebackFile(file)
            for planned in part:
                name, tensor = next(stored)
                packed = _packed(name, tensor, planned.kind)
                output.write(place, packed.reshape(-1).view(np.uint8).data)
                place += aligned(packed.nbytes)
                done += packed.nbytes
                progress.update(done, total, "bytes", phase="write")
                del packed, tensor  # else they would be held beside the next ones
            file.truncate(place)


def _write_header(path: Path, metadata: Metadata, part: Sequence[PlannedTensor]) -> int:
    """Write all that goes before the tensors; returns the place of the first."""
    writer = _open(path, metadata)
    try:
        for planned in part:
            _add(writer, planned)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    return aligned(path.stat().st_size)


def _open(path: Path, metadata: Metadata) -> GGUFWriter:
    try:
        from gguf import GGUFValueType, GGUFWriter
    except ImportError:
        raise CheckpointError(f"gguf: the package is not installed; {install_extra('gguf')}") from None
    writer = GGUFWriter(path, "")
    writer.kv_data[0].clear()  # its architecture: only the first part has one
    for key, (kind, value) in metadata.items():
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


def _add(writer: GGUFWriter, planned: PlannedTensor) -> None:
    """Announce a tensor."""
    from gguf import GGMLQuantizationType

    kind = GGMLQuantizationType[planned.kind]
    writer.add_tensor_info(planned.name, planned.shape, np.dtype(np.float32), planned.nbytes, raw_dtype=kind)


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
