"""An estimate of training memory: parameters, gradients, optimizer state and activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from fathom.plan.count import count_parameters
from fathom.plan.lora import lora_parameters, matrices
from fathom.spec import GroupedQueryAttention, ModelSpec, check
from fathom.spec.adapter import BaseFormat, LoraSpec

if TYPE_CHECKING:
    from fathom.spec.train import AdamWSpec

_BYTES: Mapping[BaseFormat, float] = MappingProxyType({"none": 4.0, "int8": 1.0, "int4": 0.625})
"""Bytes of a frozen weight: int4 has a scale and a zero point in bfloat16 for every 32."""


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes of one training process. ``activations`` is an estimate, Muon's ``optimizer`` a bound; others are exact."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.logits


def training_memory(
    spec: ModelSpec,
    *,
    tokens: int,
    activation_bytes: int = 4,
    loss_chunk_tokens: int = 1024,
    activation_checkpointing: bool = False,
    adapter: LoraSpec | None = None,
    optimizer: AdamWSpec | None = None,
) -> TrainingMemory:
    """Estimate the memory of one micro-batch of ``tokens`` tokens with float32 weights and gradients.

    The moments are those of ``optimizer``, AdamW's in float32 where none is given; Muon's matrices are counted as
    AdamW's, at most twice what they take.

    With an ``adapter`` only its parameters have gradients and moments; ``quantize_base`` keeps the matrices of the base
    in 8 bits, or in 5 with the scales of int4. Activations are counted as without it.

    Activations are what autograd keeps of each layer: its normed inputs, queries, keys, values, attention output,
    and the feed-forward products of the experts a token meets; attention scores are not kept. With activation
    checkpointing only each layer's input stays, and one layer is alive at a time. Logits and their gradient exist
    for ``loss_chunk_tokens`` rows at once, in float32.
    """
    for name, value in (("tokens", tokens), ("activation_bytes", activation_bytes)):
        check.positive(name, value)
    check.positive("loss_chunk_tokens", loss_chunk_tokens)
    count = count_parameters(spec)
    learned = 4 * (count.total + count.mtp)
    depth = spec.num_hidden_layers + spec.num_nextn_predict_layers
    layers = [_kept_numbers(spec, i) for i in range(depth)]
    kept = max(layers) + depth * spec.hidden_size if activation_checkpointing else sum(layers)
    parameters = learned
    if adapter is not None:
        packed, learned = _packed_parameters(spec), 4 * lora_parameters(spec, adapter)
        parameters += learned - 4 * packed + round(_BYTES[adapter.quantize_base] * packed)
    return TrainingMemory(
        parameters=parameters,
        gradients=learned,
        optimizer=learned if optimizer is not None and optimizer.state_dtype == "bfloat16" else 2 * learned,
        activations=kept * tokens * activation_bytes,
        logits=2 * 4 * min(tokens, loss_chunk_tokens) * spec.vocab_size,
    )


def _packed_parameters(spec: ModelSpec) -> int:
    """Count the parameters that ``quantize_base`` packs: all that can be adapted but ``kv_b_proj``."""
    packed = (matrix for matrix in matrices(spec) if not matrix.name.endswith("kv_b_proj"))
    return sum(matrix.copies * matrix.outputs * matrix.inputs for matrix in packed)


def _kept_numbers(spec: ModelSpec, index: int) -> int:
    attention, width = spec.attention, spec.hidden_size
    if isinstance(attention, GroupedQueryAttention):
        heads = 2 * (attention.num_heads + attention.num_kv_heads) * attention.head_dim
    else:
        latents = 2 * ((attention.q_lora_rank or 0) + attention.kv_lora_rank) + attention.qk_rope_head_dim
        heads = latents + 2 * attention.num_heads * (attention.qk_head_dim + attention.v_head_dim)
    moe = spec.moe
    if moe is None or not spec.is_moe_layer(index):
        inner = spec.intermediate_size or 0
    else:
        inner = moe.num_experts_per_tok * moe.moe_intermediate_size + moe.shared_intermediate_size
        inner += moe.num_experts_per_tok * width // 3  # each expert's gathered input
    return 4 * width + heads + 3 * inner
