"""DeepSeek LLM, Coder and Math: LLaMA-like dense decoders, exchanged as model_type llama."""

from __future__ import annotations

from fathom.families.preset import Preset
from fathom.spec import GroupedQueryAttention, LinearScaling, ModelSpec, RopeSpec

# Not confirmed by a stored copy of a released config: rotary base, epsilon and token ids.
_LLM_UNCONFIRMED = ("rope.theta", "rms_norm_eps", "bos_token_id", "eos_token_id")


def _llm(name: str, layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int) -> ModelSpec:
    return ModelSpec(
        name=name,
        family="llama",
        vocab_size=102400,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        attention=GroupedQueryAttention(num_heads=heads, num_kv_heads=kv_heads, head_dim=hidden // heads),
        max_position_embeddings=4096,
        bos_token_id=100000,
        eos_token_id=100001,
    )


def _coder(name: str, layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int) -> ModelSpec:
    return ModelSpec(
        name=name,
        family="llama",
        vocab_size=32256,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        attention=GroupedQueryAttention(num_heads=heads, num_kv_heads=kv_heads, head_dim=hidden // heads),
        max_position_embeddings=16384,
        rope=RopeSpec(theta=100_000.0, scaling=LinearScaling(factor=4.0)),
        bos_token_id=32013,
        eos_token_id=32014,
    )


PRESETS = (
    Preset(
        _llm("deepseek-llm-7b", 30, 4096, 11008, 32, 32),
        "DeepSeek LLM §2.2, Table 2",
        _LLM_UNCONFIRMED,
    ),
    Preset(
        _llm("deepseek-llm-67b", 95, 8192, 22016, 64, 8),
        "DeepSeek LLM §2.2, Table 2",
        _LLM_UNCONFIRMED,
    ),
    # The base models' end-of-text id is unconfirmed; the instruct models end an answer with 32021 instead.
    Preset(
        _coder("deepseek-coder-1.3b", 24, 2048, 5504, 16, 16),
        "DeepSeek-Coder Table 2, §3.6, released config",
        ("eos_token_id",),
    ),
    Preset(
        _coder("deepseek-coder-6.7b", 32, 4096, 11008, 32, 32),
        "DeepSeek-Coder Table 2, §3.6",
        ("rms_norm_eps", "bos_token_id", "eos_token_id"),
    ),
    # "Group size of 8" (§3.3) may mean 8 KV heads or 8 queries a KV head; the published count cannot decide.
    Preset(
        _coder("deepseek-coder-33b", 62, 7168, 19200, 56, 8),
        "DeepSeek-Coder Table 2, §3.3, §3.6",
        ("attention.num_kv_heads", "rms_norm_eps", "bos_token_id", "eos_token_id"),
    ),
    # Only the context is confirmed; the shape is that of DeepSeek LLM 7B, whose tokenizer it shares.
    Preset(
        _llm("deepseek-math-7b", 30, 4096, 11008, 32, 32),
        "DeepSeekMath §2.3",
        ("num_hidden_layers", "hidden_size", "intermediate_size", "attention", "vocab_size", *_LLM_UNCONFIRMED),
    ),
)
