"""A V3-shaped model with an MTP module, whose drafts are as good as one asks for."""

from __future__ import annotations

from functools import cache

import torch

from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.spec import LatentAttention, MixtureOfExperts, ModelSpec, RouterSpec

CONTEXT, VOCAB = 96, 48


@cache
def with_mtp(context_weight: float = 1.0, vocab: int = VOCAB) -> Decoder:
    """Build one in float64, so that no two tokens are equally likely to rounding.

    At weight 1 it is random and its module's drafts are no better than chance. Below, the next token depends that much
    less on what is before the last one, and so does what the module passes on to the head: at 0 it is always right.
    """
    spec = ModelSpec(
        name="tiny-v3",
        family="deepseek_v3",
        vocab_size=vocab,
        hidden_size=16,
        num_hidden_layers=2,
        attention=LatentAttention(
            num_heads=2, q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8
        ),
        max_position_embeddings=CONTEXT,
        intermediate_size=24,
        moe=MixtureOfExperts(
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=8,
            n_shared_experts=1,
            router=RouterSpec(score="sigmoid", selection_bias=True, normalize=True),
        ),
        first_k_dense_replace=1,
        initializer_range=0.4,
        num_nextn_predict_layers=1,
    )
    model = build(spec, dtype=torch.float64, seed=11).eval()
    if context_weight < 1:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "o_proj" in name or "down_proj" in name:
                    parameter *= context_weight
            module = model.mtp[0]
            module.eh_proj.weight *= context_weight
            module.eh_proj.weight[:, :16] = torch.eye(16)
    return model
