"""Loading weights in packed formats, one parameter at a time: a model is never held in a wider form than it runs in.

Blocks of GGUF files whose formats the native library has (Q8_0, Q4_0, Q4_1) are taken as they are; other quantized
numbers, K-quants and FP8 blocks, are rounded to 8 bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fathom.checkpoint.fp8 import FP8_KIND
from fathom.checkpoint.gguf.blocks import FLOATS
from fathom.checkpoint.gguf.source import GGUFFile
from fathom.checkpoint.hf import HFCheckpoint
from fathom.checkpoint.weights import Weights
from fathom.errors import CheckpointError, SpecError
from fathom.kernels.native.matrix import (
    GGML_TYPES,
    PackedExperts,
    PackedFormat,
    PackedMatrix,
    pack_gguf,
    pack_gguf_experts,
    packed_bytes,
)
from fathom.kernels.weight_formats import row_tiles
from fathom.logs import warn_once
from fathom.model.build import parameter_shapes
from fathom.model.decoder import Decoder
from fathom.model.packing import Packable, Packed, PackedUp, Packing, packable, target_format
from fathom.progress import NULL_PROGRESS, Progress
from fathom.spec.engine import PackedWeights

_TILE_WEIGHTS = 2**19
_BITS: Mapping[PackedFormat, int] = {"q4": 4, "q4m": 4, "q8": 8}


@dataclass(frozen=True, slots=True)
class PlannedPacking:
    """How one parameter is packed: as the blocks of its ``kinds``, or from numbers where ``blocks`` is False."""

    entry: Packable
    format: PackedFormat
    kinds: tuple[str, ...]
    blocks: bool

    @property
    def loses(self) -> bool:
        """Whether quantized numbers of the file are rounded again."""
        return not self.blocks and any(kind not in FLOATS for kind in self.kinds)

    @property
    def nbytes(self) -> int:
        """About how many bytes it takes."""
        return self.entry.count * packed_bytes(self.format, self.entry.rows, self.entry.columns)


def plan_packing(model: Decoder, source: Weights, weights: PackedWeights) -> dict[str, PlannedPacking]:
    """Return which parameters are packed and how; of ``model``, which may be on the meta device, only shapes are read.

    ``auto`` packs what the source holds quantized, in 8 bits where the library has no such format. ``int8`` and
    ``int4`` pack every matrix, but keep blocks that are no wider.
    """
    stored = _stored_kinds(source)
    found: dict[str, PlannedPacking] = {}
    for name, entry in packable(model).items():
        kinds, keeps_shape = stored.get(name, ((), False))
        quantized = any(kind not in FLOATS for kind in kinds)
        if weights == "auto":
            target: PackedFormat | None = "q8" if quantized else None
        else:
            target = target_format(entry.role, weights, "int8", tied=model.spec.tie_word_embeddings)
        if target is None:
            continue
        held = {GGML_TYPES[kind].format for kind in kinds if kind in GGML_TYPES and kind not in FLOATS}
        exact = keeps_shape and quantized and all(kind in GGML_TYPES for kind in kinds) and _is_one(entry, kinds)
        blocks = exact and (weights == "auto" or all(_BITS[format] <= _BITS[target] for format in held))
        format = max(held, key=_BITS.__getitem__) if blocks else target
        found[name] = PlannedPacking(entry, format, kinds, blocks)
    return found


def load_packed(
    model: Decoder, source: Weights, plan: Mapping[str, PlannedPacking], progress: Progress = NULL_PROGRESS
) -> None:
    """Fill a model that was built on the meta device: packed where ``plan`` says so, else with numbers on the CPU.

    Beside the model, one parameter is held in float32 or in blocks. What rounding quantized numbers again changed is
    logged once.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape, or cannot be packed.
    """
    shapes, state = parameter_shapes(model.spec), model.state_dict()
    sizes = {name: plan[name].nbytes if name in plan else tensor.nbytes for name, tensor in state.items()}
    packing, done, total, left = Packing(model), 0, sum(sizes.values()), dict.fromkeys(shapes)
    rounded, change, size = Counter[str](), 0.0, 0.0
    for name, value in _stream(source, plan):
        if name not in left or (isinstance(value, Tensor) and tuple(value.shape) != shapes[name]):
            raise CheckpointError(f"{name}: does not fit the model; use the config of its weights")
        if name not in plan:
            assert isinstance(value, Tensor)
            _place_plain(model, name, value)
        else:
            planned = plan[name]
            packed = _packed(name, planned, value) if isinstance(value, Tensor) else value
            if planned.loses and isinstance(value, Tensor):
                rounded[f"{' and '.join(sorted(set(planned.kinds)))} to {_BITS[planned.format]} bits"] += 1
                change, size = (
                    a + b for a, b in zip((change, size), _squares(planned.entry, packed, value), strict=True)
                )
            packing.place(name, packed)
            del packed
        del left[name], value
        done += sizes[name]
        progress.update(done, total, "bytes", phase="load")
    if left:
        raise CheckpointError(f"{next(iter(left))}: is missing, and {len(left) - 1} more; use a complete checkpoint")
    if rounded:
        what = ", ".join(f"{count} tensors of {kinds}" for kinds, count in rounded.items())
        share = (change / size) ** 0.5 if size else 0.0
        warn_once(
            f"weights: {what} were rounded, which changes them by {share:.2%} (root mean square); plain keeps them"
        )


def _stored_kinds(source: Weights) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Return each parameter's types in a file, and whether its rows can be packed as they lie there.

    Those of a Hugging Face directory are returned only where they are FP8.
    """
    if isinstance(source, HFCheckpoint):
        return dict.fromkeys(source.fp8_parameters, ((FP8_KIND,), False))
    if not isinstance(source, GGUFFile):
        return {}
    tensors = source.container.tensors
    return {
        rule.param_name: (
            tuple(tensors[name].kind for name in rule.names),
            not rule.param_name.endswith("kv_b_proj.weight") or rule.cut == "latent",
        )
        for rule in source.rules
    }


def _is_one(entry: Packable, kinds: tuple[str, ...]) -> bool:
    """Whether the stored tensors make matrices of one type; keys and values of latent attention may differ."""
    return entry.role == "up" or len(set(kinds)) == 1


def _stream(source: Weights, plan: Mapping[str, PlannedPacking]) -> Iterator[tuple[str, Tensor | Packed]]:
    if not isinstance(source, GGUFFile) or not any(planned.blocks for planned in plan.values()):
        yield from source.stream()
        return
    with source.container.reading() as read:
        for rule in source.rules:
            planned = plan.get(rule.param_name)
            if planned is None or not planned.blocks:
                yield rule.param_name, rule.assemble(read)
            elif planned.entry.role == "up":
                parts = (
                    pack_gguf_experts(read(name, blocks=True), kind, *rule.shapes[name])
                    for name, kind in zip(rule.names, planned.kinds, strict=True)
                )
                yield rule.param_name, PackedUp(*parts)
            else:
                yield rule.param_name, _from_blocks(planned, rule.assemble_rows(lambda name: read(name, blocks=True)))


def _from_blocks(planned: PlannedPacking, blocks: Tensor) -> PackedMatrix | PackedExperts:
    entry, kind = planned.entry, planned.kinds[0]
    if entry.role == "experts":
        return pack_gguf_experts(blocks, kind, entry.count, entry.rows, entry.columns)
    return pack_gguf(blocks, kind, entry.rows, entry.columns)


def _packed(name: str, planned: PlannedPacking, value: Tensor) -> Packed:
    try:
        return planned.entry.pack(value, planned.format)
    except SpecError as error:
        raise CheckpointError(f"{name}: {error.problem}; {error.remedy}") from None


def _squares(entry: Packable, packed: Packed, value: Tensor) -> tuple[float, float]:
    """Return the sums of squares of what packing changed and of the weights."""
    change = size = 0.0
    for matrix, weight in zip(entry.matrices(packed), entry.parts(value), strict=True):
        for tile in row_tiles(matrix, _TILE_WEIGHTS):
            numbers = weight[tile].float()
            change += float((matrix.unpack(tile) - numbers).square_().sum())
            size += float(numbers.square().sum())
    return change, size


def _place_plain(model: Decoder, name: str, value: Tensor) -> None:
    place, _, own = name.rpartition(".")
    module = model.get_submodule(place)
    tensors = module._parameters if own in module._parameters else module._buffers
    like = tensors[own]
    assert like is not None
    kept = torch.empty(like.shape, dtype=like.dtype).copy_(value.view(like.shape))
    tensors[own] = nn.Parameter(kept, requires_grad=False) if tensors is module._parameters else kept  # type: ignore[assignment]
