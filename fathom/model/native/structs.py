"""The structures of ``csrc/step.h``, field by field; chunks are plain arrays of integers."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_double, c_float, c_int32, c_void_p
from typing import Literal

from fathom.kernels.native.attention import Pages
from fathom.kernels.native.library import Matrix

MLA, GQA = range(2)
SOFTMAX, SIGMOID, HASH = range(3)
AttentionForm = Literal["cheapest", "rows", "tiles", "expanded"]
ATTENTION_FORMS: tuple[AttentionForm, ...] = ("cheapest", "rows", "tiles", "expanded")  # fathom_attention_form


def _ints(*names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, c_int32) for name in names)


def _pointers(*names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, c_void_p) for name in names)


class LinearWeights(Structure):
    """``fathom_linear``."""

    _fields_ = (("weight", Matrix), ("bias", c_void_p))


class Norm(Structure):
    """``fathom_norm``."""

    _fields_ = (("weight", c_void_p), ("width", c_int32), ("eps", c_float))


class SwiGLUWeights(Structure):
    """``fathom_swiglu``."""

    _fields_ = tuple((name, LinearWeights) for name in ("gate", "up", "down"))


class AttentionWeights(Structure):
    """``fathom_attention_weights``."""

    _fields_ = (
        *_ints("kind", "heads", "kv_heads", "nope", "rope", "value", "latent", "window"),
        ("scale", c_float),
        ("input", LinearWeights * 3),
        ("inputs", c_int32),
        ("q_norm", Norm),
        ("kv_norm", Norm),
        ("q_b", LinearWeights),
        ("key_up", POINTER(Matrix)),
        ("value_up", POINTER(Matrix)),
        ("output", LinearWeights),
    )


class RouterWeights(Structure):
    """``fathom_router``."""

    _fields_ = (
        *_ints("score", "experts", "chosen", "normalize", "groups", "chosen_groups", "top2"),
        ("scale", c_float),
        ("capacity", c_double),
        ("weight", Matrix),
        ("selection_bias", c_void_p),
    )


class FeedForward(Structure):
    """``fathom_feed_forward``."""

    _fields_ = (("dense", SwiGLUWeights), ("router", RouterWeights), ("experts", POINTER(SwiGLUWeights)))


class Layer(Structure):
    """``fathom_layer``."""

    _fields_ = (
        ("input_norm", Norm),
        ("output_norm", Norm),
        ("attention", AttentionWeights),
        ("feed_forward", FeedForward),
        ("pages", POINTER(Pages) * 2),
    )


class Mtp(Structure):
    """``fathom_mtp``."""

    _fields_ = (
        *((name, Norm) for name in ("embedding_norm", "hidden_norm", "norm")),
        ("projection", LinearWeights),
        ("layer", Layer),
    )


class Model(Structure):
    """``fathom_model``."""

    _fields_ = (
        *_ints("hidden", "vocabulary", "layers", "half", "attention_form", "quantize"),
        ("embedding", c_void_p),
        ("embedding_bf16", c_int32),
        ("embedding_packed", Matrix),
        *_pointers("cosine", "sine"),
        ("positions", c_int32),
        ("layer", POINTER(Layer)),
        ("norm", Norm),
        ("head", Matrix),
        ("mtp", POINTER(Mtp)),
        ("page_size", c_int32),
    )


class Batch(Structure):
    """``fathom_batch``."""

    _fields_ = (
        *_ints("rows", "chunks", "empty_slots"),
        ("tokens", c_void_p),
        ("chunk", c_void_p),
        *_pointers("pages", "previous", "hidden"),
        ("logit_rows", c_int32),
        *_pointers("logit_row", "logits", "routing"),
    )
