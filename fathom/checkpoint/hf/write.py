"""Writing ``Weights`` as a Hugging Face directory, tensor by tensor."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fathom.checkpoint import fp8
from fathom.checkpoint.hf.files import (
    CONFIG,
    GENERATION,
    INDEX,
    TOKENIZER,
    TOKENIZER_FILES,
    read_json,
    shard_name,
)
from fathom.checkpoint.hf.scales import QUANTIZATION, SUFFIX
from fathom.checkpoint.names import NameTable, Rule, name_table
from fathom.checkpoint.tensorfile import Entry, TensorFileWriter
from fathom.checkpoint.weights import Weights
from fathom.errors import CheckpointError, ResourceError, SpecError
from fathom.files import json_text, publish_directory
from fathom.progress import NULL_PROGRESS, Progress
from fathom.spec import ModelSpec
from fathom.spec.hf import ExtraConfig, spec_to_hf
from fathom.tokenizer.bpe import Tokenizer
from fathom.tokenizer.chat_templates import TEMPLATE_FOLDER

DType = torch.dtype | Literal["fp8"]
_TYPES: tuple[DType | None, ...] = (None, torch.float32, torch.bfloat16, torch.float16, "fp8")
_BIAS = "e_score_correction_bias"
"""Stays float32 in every release: it decides between nearly equal scores."""


@dataclass(frozen=True, slots=True)
class WritePlan:
    """The tensors to write: one group of entries per Hugging Face tensor."""

    rules: tuple[tuple[Rule, tuple[str, ...]], ...]
    groups: dict[str, tuple[Entry, ...]]

    @property
    def total(self) -> int:
        """Bytes of all tensors."""
        return sum(_nbytes(group) for group in self.groups.values())

    @property
    def main(self) -> torch.dtype:
        """The type of most bytes, and of the rest where that is FP8."""
        found: Counter[torch.dtype] = Counter()
        for group in self.groups.values():
            found[torch.bfloat16 if len(group) > 1 else group[0][1]] += _nbytes(group[:1])
        return found.most_common(1)[0][0]

    def shards(self, largest: int) -> Iterator[list[str]]:
        """Yield the published tensors of each file: as many as fit, and at least one."""
        members: list[str] = []
        filled = 0
        for name, group in self.groups.items():
            if members and filled + _nbytes(group) > largest:
                yield members
                members, filled = [], 0
            members.append(name)
            filled += _nbytes(group)
        yield members


def write_hf(
    directory: Path,
    weights: Weights,
    *,
    carried: ExtraConfig | None = None,
    tokenizer: Tokenizer | Path | None = None,
    dtype: DType | None = None,
    eos_ids: Iterable[int] = frozenset(),
    max_shard_bytes: int = 5_000_000_000,
    progress: Progress = NULL_PROGRESS,
) -> Path:
    """Write a directory that other programs load, and return it.

    One Hugging Face tensor is held beside what the stream holds.

    Args:
        directory: where it appears; nothing may exist there.
        weights: the model; its family says how tensors are named.
        carried: fields of config.json beyond the spec, as ``HFCheckpoint.carried`` holds them.
        tokenizer: a tokenizer, or a directory whose tokenizer files and generation settings are copied.
        dtype: what weights are converted to; None keeps each. ``fp8`` stores the matrices of attention and
            feed-forward layers in blocks as DeepSeek-V3 does, and the rest in bfloat16. Selection biases stay float32
            wherever a type is given.
        eos_ids: tokens that end an answer; without any, those of the spec or the tokenizer.
        max_shard_bytes: weights beyond this many bytes are split over several files with an index.
        progress: receives the bytes written.

    Raises:
        CheckpointError: the directory exists, the weights are not whole or not finite, or there is no tokenizer.json.
        SpecError: the family's config.json cannot express the spec.
        ResourceError: the disk is full or refuses; nothing appears.
    """
    if directory.exists():
        raise CheckpointError(f"{directory}: already exists; choose a new directory or remove it first")
    if isinstance(tokenizer, Path) and not (tokenizer / TOKENIZER).is_file():
        raise CheckpointError(f"{tokenizer}: holds no {TOKENIZER}; name the directory of the tokenizer")
    if dtype not in _TYPES:
        kinds = ", ".join(str(kind).removeprefix("torch.") for kind in _TYPES if kind is not None)
        raise SpecError("dtype", f"weights are not published in {dtype}", f"use one of {kinds}")
    plan = plan_weights(weights, dtype)
    config = _config(weights.spec, plan, carried, quantized=dtype == "fp8")
    generation = _generation(weights.spec, tokenizer, eos_ids)
    with publish_directory(directory) as temporary:
        free = shutil.disk_usage(temporary).free
        if plan.total > free:
            raise ResourceError(
                f"{directory}: needs {plan.total:,} bytes and {free:,} are free; free disk space or choose another disk"
            )
        _write_json(temporary / CONFIG, config)
        if generation:
            _write_json(temporary / GENERATION, generation)
        _write_tokenizer(temporary, tokenizer)
        _write_weights(temporary, weights, plan, max_shard_bytes, progress)
    return directory


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json_text(content, indent=2, allow_nan=False), encoding="utf-8")


def plan_weights(weights: Weights, dtype: DType | None) -> WritePlan:
    """Plan the tensors of a published directory; ``CheckpointError`` where names are missing or unexpected."""
    table, types = name_table(weights.spec), weights.dtypes
    _check_whole(table, weights)
    rules: list[tuple[Rule, tuple[str, ...]]] = []
    groups: dict[str, tuple[Entry, ...]] = {}
    for rule, parts, repeats in table.pieces():
        rules.append((rule, repeats))
        for name in (*parts, *repeats):
            groups[name] = _entries(rule, name, types[rule.param_name], dtype)
    return WritePlan(tuple(rules), groups)


def _check_whole(table: NameTable, weights: Weights) -> None:
    """Compare names; shapes are compared as the tensors come."""
    shapes = table.our_shapes()
    table.check_ours({name: shapes.get(name, ()) for name in weights.dtypes})


def _entries(rule: Rule, name: str, stored: torch.dtype, dtype: DType | None) -> tuple[Entry, ...]:
    shape = rule.part_shape
    if dtype == "fp8" and _in_blocks(rule):
        scale = (name + SUFFIX, torch.float32, fp8.scale_shape(shape))
        return (name, torch.float8_e4m3fn, shape), scale
    if dtype is None:
        return ((name, stored, shape),)
    if rule.param_name.endswith(_BIAS):
        return ((name, torch.float32, shape),)
    return ((name, torch.bfloat16 if dtype == "fp8" else dtype, shape),)


def _in_blocks(rule: Rule) -> bool:
    """Whether DeepSeek-V3 stores it in FP8: every matrix of attention, experts and dense layers but the router's."""
    text = rule.param_name.startswith(("layers.", "mtp."))
    inside = ".self_attn." in rule.param_name or ".mlp." in rule.param_name
    return text and inside and len(rule.part_shape) == 2 and ".gate." not in rule.param_name


def _nbytes(group: tuple[Entry, ...]) -> int:
    return sum(torch.Size(shape).numel() * dtype.itemsize for _, dtype, shape in group)


def _config(spec: ModelSpec, plan: WritePlan, carried: ExtraConfig | None, *, quantized: bool) -> dict[str, Any]:
    """Make config.json; it names the type and quantization of the weights as they are now, not as they were."""
    config = dict(spec_to_hf(spec, carried))
    named = [key for key in ("torch_dtype", "dtype") if key in config] or ["torch_dtype"]
    config |= dict.fromkeys(named, str(plan.main).removeprefix("torch."))
    config.pop("quantization_config", None)
    return config | ({"quantization_config": dict(QUANTIZATION)} if quantized else {})


def _generation(spec: ModelSpec, tokenizer: Tokenizer | Path | None, eos_ids: Iterable[int]) -> dict[str, Any]:
    """Make generation_config.json: what came with the tokenizer, and which tokens begin, end and pad."""
    config: dict[str, Any] = {}
    if isinstance(tokenizer, Path) and (tokenizer / GENERATION).is_file():
        config = read_json(tokenizer / GENERATION)
    own = tokenizer if isinstance(tokenizer, Tokenizer) else None
    begin = spec.bos_token_id if spec.bos_token_id is not None or own is None else own.bos_id
    end = spec.eos_token_id if spec.eos_token_id is not None or own is None else own.eos_id
    pad = spec.pad_token_id if spec.pad_token_id is not None or own is None else own.pad_id
    for name, token in (("bos_token_id", begin), ("pad_token_id", pad), ("eos_token_id", end)):
        if token is not None and token >= 0:
            config.setdefault(name, token)
    listed = sorted(eos_ids, key=lambda token: (token != end, token))
    if listed:
        config["eos_token_id"] = listed[0] if len(listed) == 1 else listed
    return config


def _write_tokenizer(folder: Path, tokenizer: Tokenizer | Path | None) -> None:
    if isinstance(tokenizer, Tokenizer):
        tokenizer.save(folder)
    elif tokenizer is not None:
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, folder / name)
        if (tokenizer / TEMPLATE_FOLDER).is_dir():
            shutil.copytree(tokenizer / TEMPLATE_FOLDER, folder / TEMPLATE_FOLDER)


def _write_weights(folder: Path, weights: Weights, plan: WritePlan, max_shard_bytes: int, progress: Progress) -> None:
    shards = list(plan.shards(max_shard_bytes))
    stream = _published(weights, plan)
    placed: dict[str, str] = {}
    done, total = 0, plan.total
    for index, members in enumerate(shards):
        file = shard_name(index, len(shards))
        entries = [entry for name in members for entry in plan.groups[name]]
        placed |= {name: file for name, _, _ in entries}
        with TensorFileWriter(folder / file, entries) as writer:
            for name in members:
                done += _write_group(writer, plan.groups[name], next(stream))
                progress.update(done, total, "bytes", phase="save")
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": plan.total}, "weight_map": placed})


def _write_group(writer: TensorFileWriter, group: tuple[Entry, ...], tensors: tuple[Tensor, ...]) -> int:
    return sum(writer.write(name, tensor) for (name, _, _), tensor in zip(group, tensors, strict=True))


def _published(weights: Weights, plan: WritePlan) -> Iterator[tuple[Tensor, ...]]:
    """Yield what each group of the plan holds, converted."""
    stream = weights.stream()
    for rule, repeats in plan.rules:
        param_name, whole = next(stream, ("nothing more", torch.empty(0)))
        if param_name != rule.param_name or tuple(whole.shape) != rule.shape:
            raise CheckpointError(
                f"{param_name}: {tuple(whole.shape)} came where {rule.param_name} of {rule.shape} was due; "
                "use weights that fit their spec"
            )
        for name, part in (*rule.split(whole), *((name, whole) for name in repeats)):
            yield _converted(name, part, plan.groups[name])
        del whole, part


def _converted(name: str, part: Tensor, group: tuple[Entry, ...]) -> tuple[Tensor, ...]:
    if len(group) == 1:
        return (part.to(group[0][1]),)
    values, scales = fp8.quantize(part)
    if not scales.isfinite().all():
        raise CheckpointError(f"{name}: holds numbers that are not finite; FP8 blocks cannot, so repair the weights")
    return values, scales
