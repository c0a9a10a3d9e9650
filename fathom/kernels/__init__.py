"""The hot operations, one signature each; which implementation runs is chosen here and nowhere else.

``reference`` holds the reference implementation of every one, in plain PyTorch.
"""

from __future__ import annotations

from fathom.kernels.attention import attention, attention_with_lse, merge_attention
from fathom.kernels.bits import pack_11, unpack_11
from fathom.kernels.cross_entropy import linear_cross_entropy, linear_token_loss, mean_linear_cross_entropy
from fathom.kernels.device_attention import packed_attention, takes_packed_attention
from fathom.kernels.elementwise import rms_norm, rotate, swiglu
from fathom.kernels.entropy import linear_entropy
from fathom.kernels.experts import grouped_swiglu
from fathom.kernels.fp8 import fp8_block_linear
from fathom.kernels.frozen import ExpertProduct, adapted_swiglu, frozen_quantized_linear
from fathom.kernels.latent_attention import latent_attention, trains_latent_attention
from fathom.kernels.linear import linear, swiglu_linear
from fathom.kernels.packed_products import packed_rows
from fathom.kernels.quantized_experts import quantized_grouped_swiglu
from fathom.kernels.quantized_products import quantized_linear
from fathom.kernels.shared_prefix import shared_prefix_attention

__all__ = [
    "ExpertProduct",
    "adapted_swiglu",
    "attention",
    "attention_with_lse",
    "fp8_block_linear",
    "frozen_quantized_linear",
    "grouped_swiglu",
    "latent_attention",
    "linear",
    "linear_cross_entropy",
    "linear_entropy",
    "linear_token_loss",
    "mean_linear_cross_entropy",
    "merge_attention",
    "pack_11",
    "packed_attention",
    "packed_rows",
    "quantized_grouped_swiglu",
    "quantized_linear",
    "rms_norm",
    "rotate",
    "shared_prefix_attention",
    "swiglu",
    "swiglu_linear",
    "takes_packed_attention",
    "trains_latent_attention",
    "unpack_11",
]
