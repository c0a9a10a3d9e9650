"""R1 distills: Qwen 2.5 and Llama 3 dense decoders (R1 §2.4).

The paper names the base models only. Every shape here is unconfirmed by a stored copy of a released config, and each
preset says so.
"""

from __future__ import annotations

from fathom.families.preset import Preset
from fathom.spec import GroupedQueryAttention, Llama3Scaling, ModelSpec, RopeSpec

_UNCONFIRMED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "attention",
    "max_position_embeddings",
    "rope",
    "rms_norm_eps",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)


def _qwen(
    size: str,
    shape: tuple[int, int, int, int, int],
    *,
    vocab_size: int = 152064,
    theta: float = 1_000_000.0,
    eps: float = 1e-5,
) -> Preset:
    layers, hidden, intermediate, heads, kv_heads = shape
    spec = ModelSpec(
        name=f"deepseek-r1-distill-qwen-{size}",
        family="qwen2",
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        attention=GroupedQueryAttention(
            num_heads=heads, num_kv_heads=kv_heads, head_dim=hidden // heads, qkv_bias=True
        ),
        max_position_embeddings=131072,
        rope=RopeSpec(theta=theta),
        rms_norm_eps=eps,
        bos_token_id=151646,
        eos_token_id=151643,
    )
    return Preset(spec, "DeepSeek-R1 §2.4 for the base model", _UNCONFIRMED)


def _llama(size: str, shape: tuple[int, int, int, int, int]) -> Preset:
    layers, hidden, intermediate, heads, kv_heads = shape
    spec = ModelSpec(
        name=f"deepseek-r1-distill-llama-{size}",
        family="llama",
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        attention=GroupedQueryAttention(num_heads=heads, num_kv_heads=kv_heads, head_dim=hidden // heads),
        max_position_embeddings=131072,
        rope=RopeSpec(theta=500_000.0, scaling=Llama3Scaling(factor=8.0, original_max_position_embeddings=8192)),
        rms_norm_eps=1e-5,
        bos_token_id=128000,
        eos_token_id=128001,
    )
    return Preset(spec, "DeepSeek-R1 §2.4 for the base model", _UNCONFIRMED)


PRESETS = (
    _qwen("1.5b", (28, 1536, 8960, 12, 2), vocab_size=151936, theta=10_000.0, eps=1e-6),
    _qwen("7b", (28, 3584, 18944, 28, 4), theta=10_000.0, eps=1e-6),
    _qwen("14b", (48, 5120, 13824, 40, 8)),
    _qwen("32b", (64, 5120, 27648, 40, 8)),
    _llama("8b", (32, 4096, 14336, 32, 8)),
    _llama("70b", (80, 8192, 28672, 64, 8)),
)
