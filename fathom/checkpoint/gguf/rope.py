"""Rotary embedding in GGUF: linear and YaRN scaling as keys, Llama 3 scaling as a tensor of divisors.

llama.cpp's YaRN: a context multiplies cos and sin by r and MLA's softmax scale by k^2, where for a factor s, the
stored attention factor a (1 when absent) and yarn_log_multiplier / 0.1 = l (0 when absent), with
m(s, c) = 0.1 c ln s + 1:

    MLA, l present:     r = a             k = a m(s, l)
    MLA, l absent:      r = a m(s, 1)     k = a m(s, 1)
    no MLA:             r = a m(s, 1)     l is not read

Published DeepSeek files have mscale = mscale_all_dim = l and no a: r = 1 and k = m(s, l), as their authors compute.

Z = R / 2 rotated pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import torch
from torch import Tensor

from fathom.checkpoint.gguf.keys import Keys, Metadata, shortest
from fathom.errors import SpecError
from fathom.model.rope import frequencies
from fathom.spec import LinearScaling, Llama3Scaling, RopeScaling, RopeSpec, YarnScaling

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor that holds what each pair's frequency is divided by."""
_CLOSE = 3e-7
_temperature = YarnScaling.temperature


def write_rope(rope: RopeSpec, arch: str, *, mla: bool) -> Metadata:
    """Write base and scaling, so that llama.cpp rotates by the same angles and scales by the same factors."""
    written: Metadata = {f"{arch}.rope.freq_base": ("FLOAT32", rope.theta)}
    prefix = f"{arch}.rope.scaling"
    match rope.scaling:
        case None:
            pass
        case LinearScaling(factor=factor):
            written |= {f"{prefix}.type": ("STRING", "linear"), f"{prefix}.factor": ("FLOAT32", factor)}
        case Llama3Scaling(original_max_position_embeddings=original):
            written[f"{prefix}.original_context_length"] = ("UINT32", original)
        case YarnScaling() as yarn:
            written |= {
                f"{prefix}.type": ("STRING", "yarn"),
                f"{prefix}.factor": ("FLOAT32", yarn.factor),
                f"{prefix}.original_context_length": ("UINT32", yarn.original_max_position_embeddings),
                f"{prefix}.yarn_beta_fast": ("FLOAT32", yarn.beta_fast),
                f"{prefix}.yarn_beta_slow": ("FLOAT32", yarn.beta_slow),
            }
            factor, log_multiplier = _yarn_factors(yarn, mla=mla)
            if log_multiplier:
                written[f"{prefix}.yarn_log_multiplier"] = ("FLOAT32", log_multiplier)
            if factor != 1.0:
                written[f"{prefix}.attn_factor"] = ("FLOAT32", factor)
    return written


def _yarn_factors(yarn: YarnScaling, *, mla: bool) -> tuple[float, float]:
    """Return llama.cpp's a and 0.1 L for the factors the spec asks for."""
    rotation = yarn.rotation_scale
    if mla and yarn.factor > 1:
        if rotation == 1.0 and yarn.mscale_all_dim:
            return 1.0, float(Decimal(str(yarn.mscale_all_dim)) / 10)
        softmax = _temperature(yarn.factor, yarn.mscale_all_dim or 0.0)
        log_multiplier = (softmax / rotation - 1) / math.log(yarn.factor)
        if abs(log_multiplier) > _CLOSE:
            return rotation, log_multiplier
    factor = rotation / _temperature(yarn.factor, 1.0)
    return (1.0 if abs(factor - 1) < _CLOSE else factor), 0.0


def read_rope(keys: Keys, rope_dim: int, factors: Sequence[float] | None, *, mla: bool) -> RopeSpec:
    """Read base and scaling; ``factors`` are the values of ``rope_freqs.weight`` where the file has it.

    Raises:
        SpecError: the scaling is of another kind, or the factors are not Llama 3's.
    """
    theta = keys.number("rope.freq_base", 10_000.0)
    kind = keys.word("rope.scaling.type", "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0)) or 1.0
    scaling: RopeScaling | None = None
    if kind == "linear":
        scaling = LinearScaling(factor=factor) if factor != 1 else None
    elif kind == "yarn":
        scaling = _read_yarn(keys, factor, mla=mla)
    elif kind != "none":
        raise keys.error("rope.scaling.type", f"{kind!r} is not supported", "choose a model with linear or yarn")
    if factors is not None and any(value != 1 for value in factors):
        if scaling is not None:
            raise SpecError(ROPE_FACTORS, f"stands beside {kind} scaling", "choose a model with one of the two")
        original = keys.integer("rope.scaling.original_context_length", 0)
        scaling = recognise_llama3(factors, theta, rope_dim, original or None)
    return RopeSpec(theta=theta, layout="interleaved" if mla else "half", scaling=scaling)


def _read_yarn(keys: Keys, factor: float, *, mla: bool) -> YarnScaling:
    stored = keys.number("rope.scaling.attn_factor", 1.0)
    log_multiplier = keys.number("rope.scaling.yarn_log_multiplier", 0.0) if mla else 0.0
    natural = _temperature(factor, 1.0)
    rotation = stored if log_multiplier else stored * natural
    softmax = (rotation * (1 + log_multiplier * math.log(factor))) if mla else 1.0
    spelled: dict[str, Any] = {}
    if mla and _close(rotation, 1) and not _close(softmax, 1):
        mscale = float(Decimal(str(log_multiplier)) * 10)
        spelled = {"mscale": mscale, "mscale_all_dim": mscale}
    elif not (_close(rotation, natural) and _close(softmax, 1)):
        spelled = {"attention_factor": _rounded(rotation)}
        if not _close(softmax, 1):
            spelled["mscale_all_dim"] = _rounded((softmax - 1) / (0.1 * math.log(factor)))
    if not mla and "rope.scaling.attn_factor" not in keys and "rope.scaling.yarn_attn_factor" in keys:
        spelled = {"attention_factor": keys.number("rope.scaling.yarn_attn_factor")}
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=keys.integer(
            "rope.scaling.original_context_length", keys.integer("context_length")
        ),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
        **spelled,
    )


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= _CLOSE * abs(other)


def _rounded(value: float) -> float:
    """Return six digits where they are as near as float32 can tell, else the value."""
    short = float(f"{value:.6g}")
    return short if _close(short, value) else shortest(value)


def rope_factors(scaling: Llama3Scaling, theta: float, rope_dim: int) -> Tensor:
    """Return what each pair's plain frequency is divided by: float32 (Z,), 1 for fast pairs, the factor for slow."""
    plain_Z = frequencies(RopeSpec(theta=theta), rope_dim)
    return plain_Z / frequencies(RopeSpec(theta=theta, scaling=scaling), rope_dim)


def recognise_llama3(factors: Sequence[float], theta: float, rope_dim: int, original: int | None) -> Llama3Scaling:
    """Return the Llama 3 scaling that gives these factors; ``low_freq_factor`` is 1, as all others scale with it.

    Between the bands, 1/factor is linear in the frequency, so two blended pairs fix context and bands; with fewer,
    ``original`` and the contexts of released models are tried with the bands of Llama 3.

    Raises:
        SpecError: no Llama 3 scaling gives them.
    """
    given_Z = torch.tensor(list(factors), dtype=torch.float64)
    if given_Z.numel() != rope_dim // 2:
        raise SpecError(ROPE_FACTORS, f"has {given_Z.numel()} values for {rope_dim // 2} pairs", "get the file again")
    factor = shortest(float(given_Z.max()))
    candidates = _solved(given_Z, factor, theta, rope_dim)
    candidates += [(context, 4.0) for context in (original, 8192, *(2**n for n in range(4, 20))) if context]
    for context, high in candidates:
        if context < 1 or high <= 1 or factor <= 0:
            continue
        scaling = Llama3Scaling(factor=factor, original_max_position_embeddings=context, high_freq_factor=high)
        if torch.allclose(rope_factors(scaling, theta, rope_dim).double(), given_Z, rtol=1e-5, atol=0):
            return scaling
    raise SpecError(ROPE_FACTORS, "holds frequencies that are not Llama 3's", "choose a model with Llama 3 scaling")


def _solved(given_Z: Tensor, factor: float, theta: float, rope_dim: int) -> list[tuple[int, float]]:
    """Return (context, high_freq_factor) from the fastest and the slowest blended pair, as whole numbers and not."""
    blended = ((given_Z > 1 + 1e-4) & (given_Z < factor * (1 - 1e-4))).nonzero().flatten().tolist()
    if len(blended) < 2:
        return []
    turns_Z = frequencies(RopeSpec(theta=theta), rope_dim).double() / (2 * math.pi)
    first, last = blended[0], blended[-1]
    kept = [float((1 / given_Z[i] - 1 / factor) / (1 - 1 / factor)) for i in (first, last)]
    slope = (kept[0] - kept[1]) / float(turns_Z[first] - turns_Z[last])
    low = slope * float(turns_Z[first]) - kept[0]  # kept = (context x turns - 1) / (high - 1), low = 1 / (high - 1)
    if slope <= 0 or low <= 0:
        return []
    high, context = 1 + 1 / low, round(slope / low)
    return [(context, float(round(high))), (context, _rounded(high))]
