"""Describes a checkpoint from its headers, without reading a tensor."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fathom.checkpoint.weights import WeightSource
from fathom.errors import FathomError
from fathom.inference.conversion_dtypes import dtype_warnings, lossless_dtype
from fathom.inference.conversion_warnings import FORMS, CheckpointFormat, conversion_warnings, unsupported_reason
from fathom.locale import marked
from fathom.plan import cache_bytes, cache_bytes_per_token, count_parameters
from fathom.spec import (
    GroupedQueryAttention,
    GroupLimited,
    MixtureOfExperts,
    ModelSpec,
    RopeSpec,
    YarnScaling,
    to_mapping,
)
from fathom.spec.attention import Attention
from fathom.spec.engine import CACHE_FORMATS, CacheFormat
from fathom.spec.moe import Capacity
from fathom.tokenizer.bpe import Tokenizer

CACHE_BITS = {"bfloat16": 16, "float32": 32}


def inspect_source(source: WeightSource) -> dict[str, Any]:
    """Return a description of a source as plain JSON; only headers and the tokenizer are read."""
    spec = source.spec
    return {
        "name": spec.name,
        "family": spec.family,
        "form": source.form,
        "path": str(source.path),
        "files": list_files(source.path),
        "summary": summary(spec),
        "spec": to_mapping(spec),
        "parameters": asdict(count_parameters(spec)),
        "tensors": tensor_dtypes(source),
        "cache": cache(spec),
        "on_cpu": on_cpu(source),
        **_text(source),
        "exports": {form: _export(source, form) for form in FORMS},
    }


def _export(source: WeightSource, form: CheckpointFormat) -> dict[str, Any]:
    unsupported = unsupported_reason(source, form)
    if unsupported is not None:
        return {"obstacle": unsupported, "losses": []}
    kind = lossless_dtype(source, form)
    return {
        "obstacle": None,
        "losses": [*dtype_warnings(source, form, kind), *conversion_warnings(source, form, kind)],
    }


def list_files(path: Path) -> list[dict[str, Any]]:
    """List the files of a directory, or the one file or all parts of a split GGUF model, with their bytes."""
    from fathom.checkpoint.gguf.part_names import present_parts

    found = present_parts(path) if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    return [{"name": file.name, "bytes": file.stat().st_size} for file in found]


def tensor_dtypes(source: WeightSource) -> list[dict[str, Any]]:
    """Count the stored tensors, their elements and bytes by dtype, most bytes first."""
    counts, numbers, sizes = Counter[str](), Counter[str](), Counter[str]()
    for entry in source.stored:
        counts[entry.kind] += 1
        numbers[entry.kind] += math.prod(entry.shape)
        sizes[entry.kind] += entry.nbytes
    return [
        {"kind": kind, "tensors": counts[kind], "numbers": numbers[kind], "bytes": size}
        for kind, size in sizes.most_common()
    ]


def on_cpu(source: WeightSource) -> dict[str, Any]:
    """Return the forms that the weights are held in on a CPU by default; ``unpacked`` says why none is packed."""
    from fathom.inference.decoder_loading import is_quantized, planned_forms
    from fathom.kernels.native import library

    forms = planned_forms(source, torch.device("cpu"), torch.float32, "auto")
    missing = is_quantized(source) and not library.available()
    described = [asdict(form) | {"stored": list(form.stored), "parameters": list(form.parameters)} for form in forms]
    return {"unpacked": library.unavailable_reason() if missing else None, "forms": described}


def cache(spec: ModelSpec) -> dict[str, Any]:
    """Bytes of cache per token, and of one sequence as long as the context, by dtype and quantized cache format."""
    context = spec.max_position_embeddings
    kinds: list[tuple[str, float, CacheFormat]] = [(name, bits, "plain") for name, bits in CACHE_BITS.items()]
    kinds += [(name, 16, name) for name in CACHE_FORMATS if name != "plain"]
    return {
        "bytes_per_token": {
            name: round(cache_bytes_per_token(spec, bits=bits, cache_format=kind)) for name, bits, kind in kinds
        },
        "bytes_at_full_context": {
            name: round(cache_bytes(spec, context, bits=bits, cache_format=kind)) for name, bits, kind in kinds
        },
    }


def summary(spec: ModelSpec) -> dict[str, str]:
    """Describe the model's parts, a line each."""
    lines = {
        marked("layers"): _layers(spec),
        marked("hidden size"): f"{spec.hidden_size:,}",
        marked("attention"): _attention(spec.attention),
    }
    if spec.moe is not None:
        lines |= {marked("experts"): _experts(spec.moe), marked("router"): _router(spec.moe)}
    context, original = spec.max_position_embeddings, spec.original_context
    lines |= {
        marked("positions"): _rope(spec.rope),
        marked("context"): f"{context:,}" + (f", extended from {original:,}" if original < context else ""),
        marked("vocabulary"): f"{spec.vocab_size:,}, "
        + ("head tied" if spec.tie_word_embeddings else "head of its own"),
    }
    if ahead := spec.num_nextn_predict_layers:
        lines[marked("predicts ahead")] = f"{ahead} multi-token-prediction module{'s' if ahead > 1 else ''}"
    if spec.vision is not None:
        towers = [tower for tower in (spec.vision.low, spec.vision.high) if tower is not None]
        lines[marked("vision")] = " and ".join(
            f"{type(tower).__name__.removesuffix('Spec')} {tower.image_size} px, {tower.num_hidden_layers} layers "
            f"of {tower.hidden_size:,}"
            for tower in towers
        )
    return lines


def _layers(spec: ModelSpec) -> str:
    sparse, total = spec.num_moe_layers, spec.num_hidden_layers
    width = f"{spec.intermediate_size or 0:,}"
    if not sparse:
        return f"{total}, dense, {width} wide"
    dense = f", {total - sparse} dense, {width} wide" if sparse < total else ""
    return f"{total}, {sparse} of them mixtures of experts{dense}"


def _attention(attention: Attention) -> str:
    heads = f"{attention.label}, {attention.num_heads} heads"
    if isinstance(attention, GroupedQueryAttention):
        where = [name for name, there in (("q, k, v", attention.qkv_bias), ("o", attention.out_bias)) if there]
        return f"{heads} of {attention.head_dim}" + (f", biases on {' and '.join(where)}" if where else "")
    queries = "direct queries" if attention.q_lora_rank is None else f"queries of rank {attention.q_lora_rank:,}"
    keys = f"keys {attention.qk_nope_head_dim} + {attention.qk_rope_head_dim} rotated"
    return f"{heads}, {keys}, values {attention.v_head_dim}, {queries}" + (", biases" if attention.bias else "")


def _experts(moe: MixtureOfExperts) -> str:
    shared = f" and {moe.n_shared_experts} shared" if moe.n_shared_experts else ""
    return f"{moe.num_experts_per_tok} of {moe.n_routed_experts} per token{shared}, {moe.moe_intermediate_size:,} wide"


def _router(moe: MixtureOfExperts) -> str:
    router, select = moe.router, moe.router.select
    words = [f"{router.score} scores" + (" with selection bias" if router.selection_bias else "")]
    if isinstance(select, GroupLimited):
        words.append(f"from {select.topk_group} of {select.n_group} groups ({select.group_score})")
    if isinstance(select, Capacity):
        words.append(f"capacity {select.capacity_factor:g}")
    words += ["weights normalised"] if router.normalize else []
    words += [f"scaled by {router.scale:g}"] if router.scale != 1 else []
    return ", ".join(words)


def _rope(rope: RopeSpec) -> str:
    scaling = rope.scaling
    words = [f"rotary, theta {rope.theta:,.0f}, {rope.layout} layout"]
    if scaling is not None:
        words.append(f"{scaling.kind} x{scaling.factor:g}")
    if isinstance(scaling, YarnScaling):
        words += [f"{name} {value:g}" for name in ("mscale", "mscale_all_dim") if (value := getattr(scaling, name))]
    return ", ".join(words)


def _text(source: WeightSource) -> dict[str, Any]:
    """Describe the tokenizer; one that cannot be read is reported, since the weights may still be used."""
    try:
        tokenizer, ends = source.tokenizer(), sorted(source.eos_ids)
    except FathomError as error:
        return {"tokenizer": {"problem": str(error)}, "chat_template": None, "chat_templates": [], "eos_ids": []}
    if tokenizer is None:
        return {"tokenizer": None, "chat_template": None, "chat_templates": [], "eos_ids": ends}
    return {
        "tokenizer": _tokenizer(tokenizer),
        "chat_template": tokenizer.shown_template,
        "chat_templates": list(tokenizer.chat_templates),
        "eos_ids": ends,
    }


def _tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "kind": _kind(json.loads(tokenizer.tokenizer_json)),
        "size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "special_tokens": dict(sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])),
    }


def _kind(definition: Mapping[str, Any]) -> str:
    model = definition["model"]
    name = str(model.get("type", "BPE"))
    if "ByteLevel" in json.dumps(definition.get("decoder")):
        return f"byte-level {name}"
    return name + (" with byte fallback" if model.get("byte_fallback") else "")
