"""Warnings of an export to GGUF: fields it cannot store, and what llama.cpp computes differently.

What llama.cpp does was read in its source as llama-cpp-python 0.3.36 ships it, and checked by running it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fathom.checkpoint.gguf.blocks import QuantType
from fathom.checkpoint.gguf.keys import architecture, as_float32
from fathom.checkpoint.gguf.metadata import metadata_from_spec, spec_from_metadata
from fathom.checkpoint.gguf.names import gguf_rules
from fathom.checkpoint.gguf.rope import ROPE_FACTORS, rope_factors
from fathom.checkpoint.gguf.tensor_types import stored_kinds
from fathom.errors import SpecError
from fathom.model.rope import frequencies
from fathom.spec import (
    GroupedQueryAttention,
    GroupLimited,
    Llama3Scaling,
    ModelSpec,
    RopeSpec,
    YarnScaling,
    to_mapping,
)

_TRAINING = ("initializer_range", "moe.router.balance", "moe.router.jitter")
_LITE_LAYERS = (26, 27)
_LITE_LARGE = (48, 128256)


def conversion_warnings(spec: ModelSpec, kind: QuantType = "F32") -> tuple[str, ...]:
    """Return one sentence for each thing a file of this kind does not hold, or llama.cpp computes differently with it.

    Raises:
        SpecError: the spec cannot be written at all.
    """
    return (
        *unopenable(spec),
        *_unkept(spec),
        *_attention(spec),
        *_rope(spec.rope),
        *_experts(spec),
        *_modules(spec),
        *_halves(spec, kind),
    )


def unopenable(spec: ModelSpec) -> Iterator[str]:
    """Yield one sentence for each reason why llama.cpp cannot open a file of a model; Fathom itself can."""
    attention, moe, layers = spec.attention, spec.moe, spec.num_hidden_layers
    if architecture(spec) == "llama":
        return
    if isinstance(attention, GroupedQueryAttention):
        width = attention.num_heads * attention.head_dim
        if width != spec.hidden_size:
            yield f"attention: llama.cpp cannot open the file, as its heads are {width} wide and not hidden_size"
    elif attention.q_lora_rank is not None and _taken_for_lite(spec):
        yield f"attention.q_lora_rank: llama.cpp cannot open the file, as it takes {layers} layers to have none"
    if moe is None:
        return
    select = moe.router.select
    if isinstance(select, GroupLimited) and select.topk_group < select.n_group == moe.n_routed_experts:
        yield "moe.router.select: llama.cpp cannot open the file, as its groups hold more than one expert"
    if not moe.n_shared_experts:
        yield "moe.n_shared_experts: llama.cpp cannot open the file, as it wants at least one"


def _unkept(spec: ModelSpec) -> Iterator[str]:
    try:
        again = _reread(spec)
    except SpecError:
        yield "rope.scaling: the stored frequencies do not identify Llama 3 scaling, so Fathom cannot read the file"
        return
    before, after = _flat(to_mapping(spec)), _flat(to_mapping(again))
    changed = [path for path in before if before[path] != after.get(path)]
    if _same_rotation(spec.rope, again.rope, spec.attention.rope_dim):
        changed = [path for path in changed if not path.startswith("rope.")]
    training = [path for path in changed if path.startswith(_TRAINING)]
    if training:
        yield f"settings of training are not kept: {', '.join(training)}"
    for path in changed:
        if path not in training:
            yield f"{path}: {before[path]} reads back as {after.get(path, 'nothing')}"


def _reread(spec: ModelSpec) -> ModelSpec:
    """Return the spec that a file of it would be read as."""
    metadata = {key: as_float32(v) if kind == "FLOAT32" else v for key, (kind, v) in metadata_from_spec(spec).items()}
    shapes = {name: shape for rule in gguf_rules(spec) for name, shape in rule.shapes.items()}
    scaling, width = spec.rope.scaling, spec.attention.rope_dim
    if not isinstance(scaling, Llama3Scaling):
        return spec_from_metadata(metadata, shapes)
    factors = rope_factors(scaling, spec.rope.theta, width).tolist()
    return spec_from_metadata(metadata, {**shapes, ROPE_FACTORS: (width // 2,)}, factors)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _same_rotation(one: RopeSpec, other: RopeSpec, rope_dim: int) -> bool:
    """Whether two spellings rotate and scale alike; which columns are stored as a pair is settled by their order."""
    return frequencies(one, rope_dim).allclose(frequencies(other, rope_dim), rtol=1e-5, atol=0.0) and all(
        math.isclose(a, b, rel_tol=1e-5) for a, b in zip(_scales(one), _scales(other), strict=True)
    )


def _scales(rope: RopeSpec) -> tuple[float, float]:
    yarn = rope.scaling
    return (yarn.rotation_scale, yarn.softmax_multiplier) if isinstance(yarn, YarnScaling) else (1.0, 1.0)


def _attention(spec: ModelSpec) -> Iterator[str]:
    attention = spec.attention
    if isinstance(attention, GroupedQueryAttention):
        if attention.sliding_window is not None:
            yield f"attention.sliding_window: llama.cpp attends to all tokens, not to {attention.sliding_window}"
    elif attention.q_lora_rank is None and not _taken_for_lite(spec):
        yield "attention.q_lora_rank: older releases of llama.cpp open models without it only at 26 or 27 layers"


def _taken_for_lite(spec: ModelSpec) -> bool:
    layers = spec.num_hidden_layers
    return layers in _LITE_LAYERS or (layers, spec.vocab_size) == _LITE_LARGE


def _rope(rope: RopeSpec) -> Iterator[str]:
    yarn = rope.scaling
    if not isinstance(yarn, YarnScaling):
        return
    if (yarn.beta_fast, yarn.beta_slow) != (32.0, 1.0):
        yield "rope.scaling: llama.cpp reads no beta_fast and beta_slow here and takes 32 and 1"
    if not yarn.truncate:
        yield "rope.scaling.truncate: llama.cpp rounds the bounds of the ramp to whole pairs"


def _experts(spec: ModelSpec) -> Iterator[str]:
    moe, arch = spec.moe, architecture(spec)
    if moe is None or arch == "llama":
        return
    select = moe.router.select
    if (
        isinstance(select, GroupLimited)
        and select.group_score == "max"
        and select.topk_group < select.n_group != moe.n_routed_experts
    ):
        yield (
            "moe.router.select: llama.cpp ranks groups by the sum of their two best experts instead of by their "
            "best, so that some tokens meet other experts"
        )
    if moe.router.normalize and arch == "deepseek":
        yield "moe.router.normalize: llama.cpp does not divide the weights of architecture deepseek by their sum"


def _modules(spec: ModelSpec) -> Iterator[str]:
    if spec.num_nextn_predict_layers:
        yield "num_nextn_predict_layers: older releases of llama.cpp cannot open a file with these modules"


def _halves(spec: ModelSpec, kind: QuantType) -> Iterator[str]:
    halves = [name for name, stored in stored_kinds(spec, kind).items() if stored == "F16"]
    if kind != "F16" and halves:
        yield f"{len(halves)} tensors are stored as F16, as their rows are no multiple of 32, such as {halves[0]}"
