"""Tiny models of every kind of attention, and what each says to one request alone, with a plain cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from fathom.engine.engine import Engine
from fathom.engine.request import Output, Request
from fathom.engine.sampling.draw import SamplingMetadata, draw
from fathom.model.build import build
from fathom.model.cache import StaticCache
from fathom.model.decoder import Decoder
from fathom.spec import GroupedQueryAttention, LatentAttention, MixtureOfExperts, ModelSpec
from fathom.spec.sampling import TokenLogprob

CONTEXT = 96
KINDS = ("mla", "mha", "gqa", "window")


@cache
def tiny(kind: str) -> Decoder:
    """Build a model in float64, so that no two tokens are equally likely to rounding."""
    attention = {
        "mla": LatentAttention(num_heads=2, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8),
        "mha": GroupedQueryAttention(num_heads=2, num_kv_heads=2, head_dim=8),
        "gqa": GroupedQueryAttention(num_heads=4, num_kv_heads=2, head_dim=8),
        "window": GroupedQueryAttention(num_heads=2, num_kv_heads=1, head_dim=8, sliding_window=10),
    }[kind]
    experts = MixtureOfExperts(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, n_shared_experts=1)
    spec = ModelSpec(
        name=f"tiny-{kind}",
        family="deepseek_v2" if kind == "mla" else "mistral",
        vocab_size=48,
        hidden_size=16,
        num_hidden_layers=2,
        attention=attention,
        max_position_embeddings=CONTEXT,
        intermediate_size=24,
        moe=experts if kind == "mla" else None,
        first_k_dense_replace=1 if kind == "mla" else 0,
        initializer_range=0.4,
    )
    return build(spec, dtype=torch.float64, seed=11).eval()


@torch.inference_mode()
def alone(model: Decoder, request: Request, eos_ids: frozenset[int] = frozenset()) -> list[TokenLogprob]:
    """Continue one prompt with a plain cache, token by token."""
    params, weight = request.params, model.embed_tokens.weight
    held = StaticCache.allocate(
        model.spec, batch_size=1, max_length=model.spec.max_position_embeddings, dtype=weight.dtype
    )
    ids: list[int] = []
    row = SamplingMetadata(params=params, prompt=request.prompt, drawn=ids, seed=params.seed or 0, eos_ids=eos_ids)
    stops = {*params.stop_token_ids, *(() if params.ignore_eos else eos_ids)}
    tokens, answer = torch.tensor([request.prompt]), []
    while len(answer) < params.max_tokens:
        (drawn,) = draw(model.logits(model(tokens, cache=held).hidden_BTD[:, -1]), [row])
        if drawn.token_id in stops:
            break
        answer.append(drawn)
        ids.append(drawn.token_id)
        tokens = torch.tensor([[drawn.token_id]])
    return answer


def verify(engine: Engine) -> None:
    """Check the books of the pages against every request there is."""
    engine.pages.verify([state.pages for state in (*engine.scheduler.running, *engine.scheduler.waiting)])
    assert engine.leaked_pages == 0


def finish(engine: Engine, after_step: Callable[[], None] = lambda: None) -> dict[int, list[Output]]:
    """Step until there is nothing to do and return every request's outputs."""
    outputs: dict[int, list[Output]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
        verify(engine)
        after_step()
    return outputs


def ids(outputs: list[Output]) -> list[int]:
    return [token.token_id for output in outputs for token in output.tokens]
