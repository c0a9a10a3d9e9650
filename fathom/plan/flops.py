"""Floating-point operations per token: matrix products only, two operations a multiply-add.

Softmax, activations and rotary embedding are omitted, as is usual; norms and biases count as if each number were a
column of a matrix, which is a part in ten thousand.
"""

from __future__ import annotations

from fathom.plan.count import count_parameters, idle_expert_parameters, mtp_parameters
from fathom.spec import GroupedQueryAttention, ModelSpec, check


def forward_flops_per_token(spec: ModelSpec, context: int) -> float:
    """FLOPs of one token's forward pass in a sequence of ``context`` tokens, keys and values expanded.

    2 N + 2 L H (d_qk + d_v) S, where N is the active parameters without the input embedding and S the keys a query
    meets: all ``context`` of them (causality is not discounted, the convention of DeepSeek LLM §3.2), or the sliding
    window if that is shorter.
    """
    check.positive("context", context)
    attention = spec.attention
    if isinstance(attention, GroupedQueryAttention):
        widths = 2 * attention.head_dim
    else:
        widths = attention.qk_head_dim + attention.v_head_dim
    scores = attention.num_heads * widths * _visible(spec, context)
    return 2.0 * count_parameters(spec).active + 2.0 * spec.num_hidden_layers * scores


def training_flops_per_token(spec: ModelSpec, context: int) -> float:
    """FLOPs of forward and backward per token: 6 N + 6 L H (d_qk + d_v) S, three times the forward pass.

    With multi-head attention the second term is DeepSeek LLM's 12 n_layer d_model l_seq. Multi-token-prediction
    modules add theirs, each with one more pass through the output head.
    """
    main = forward_flops_per_token(spec, context)
    depth = spec.num_nextn_predict_layers
    if not depth:
        return 3.0 * main
    attention = main - 2.0 * count_parameters(spec).active
    extra = 0.0
    for k in range(depth):
        active = mtp_parameters(spec, k) - idle_expert_parameters(spec, spec.num_hidden_layers + k)
        extra += 2.0 * (active + spec.vocab_size * spec.hidden_size) + attention / spec.num_hidden_layers
    return 3.0 * (main + extra)


def decoding_flops_per_token(spec: ModelSpec, context: int) -> float:
    """FLOPs of decoding one token against ``context`` cached ones, MLA absorbed (V2 §2.1.2).

    Absorbed, each head meets the latent and the rotated key (width C + R) and sums latents (width C); the
    up-projections are applied to the query and the output, at the same cost as applying them to the new token.
    """
    check.positive("context", context)
    attention = spec.attention
    if isinstance(attention, GroupedQueryAttention):
        widths = 2 * attention.head_dim
    else:
        widths = 2 * attention.kv_lora_rank + attention.qk_rope_head_dim
    scores = attention.num_heads * widths * _visible(spec, context)
    return 2.0 * count_parameters(spec).active + 2.0 * spec.num_hidden_layers * scores


def _visible(spec: ModelSpec, context: int) -> int:
    window = spec.attention.sliding_window if isinstance(spec.attention, GroupedQueryAttention) else None
    return context if window is None else min(context, window)
