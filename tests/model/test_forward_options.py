"""Packing and routing options: what they refuse, and stages of the decoder that add up to the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fathom.errors import ContextError, SpecError
from fathom.model.build import build
from fathom.model.cache import StaticCache
from fathom.model.forward_options import PackedSequences, RoutingOptions
from fathom.model.moe import chosen_experts
from fathom.spec import ModelSpec

TOKENS = torch.randint(0, 100, (1, 14), generator=torch.Generator().manual_seed(4))


@given(st.lists(st.tuples(st.integers(-1, 6), st.integers(-1, 6)), max_size=5))
def test_packing_is_refused_exactly_where_a_sequence_or_its_prefix_is_not_there(
    sequences: list[tuple[int, int]],
) -> None:
    """Oracle: lay the sequences one by one, each on what the last complete one has."""
    lengths, prefixes = tuple(n for n, _ in sequences), tuple(p for _, p in sequences)
    complete, fits = 0, bool(sequences)
    for length, prefix in sequences:
        fits = fits and length >= 1 and prefix in range(complete + 1)
        complete = length if prefix == 0 else complete
    if not fits:
        with pytest.raises(SpecError, match=r"packed\.(lengths|shared_prefix_lengths)"):
            PackedSequences(lengths, prefixes)
        return
    packed = PackedSequences(lengths, prefixes)
    assert packed.num_tokens == sum(lengths)
    assert packed.max_context == max(length + prefix for length, prefix in sequences)


@pytest.mark.parametrize(
    ("shape", "lengths"), [((1, 7), (3, 3)), ((1, 7), (3, 5)), ((2, 7), (7, 7)), ((7, 1), (1,) * 7)]
)
def test_packing_that_does_not_make_up_the_tokens_is_refused(
    grouped_spec: Callable[..., ModelSpec], shape: tuple[int, int], lengths: tuple[int, ...]
) -> None:
    with pytest.raises(SpecError, match=r"packed.lengths: .* do not make tokens of shape"):
        build(grouped_spec())(torch.ones(shape).long(), packed=PackedSequences(lengths))


def test_packing_goes_with_neither_a_cache_nor_mtp(latent_spec: Callable[..., ModelSpec]) -> None:
    model, packed = build(latent_spec(num_nextn_predict_layers=1)), PackedSequences((9, 5))
    cache = StaticCache.allocate(model.spec, batch_size=1, max_length=20)
    with pytest.raises(SpecError, match="goes with neither a cache nor mtp"):
        model(TOKENS, packed=packed, cache=cache)
    with pytest.raises(SpecError, match="goes with neither a cache nor mtp"):
        model(TOKENS, packed=packed, mtp=True)
    assert cache.lengths == [0]


def stages(count: int, cuts: tuple[int, ...]) -> list[range]:
    return [range(*ends) for ends in pairwise((0, *cuts, count))]


@pytest.mark.parametrize("cuts", [(1,), (2,), (1, 2), (0, 3)])
@pytest.mark.parametrize("kind", ["rows", "packed", "recomputed", "replayed", "drawn", "hash"])
def test_embedding_layers_and_norm_called_apart_are_the_forward_pass(
    latent_spec: Callable[..., ModelSpec], cuts: tuple[int, ...], kind: str
) -> None:
    spec = latent_spec(first_k_dense_replace=0)
    assert spec.moe is not None
    router: dict[str, Any] = {"hash": {"score": "hash"}, "drawn": {"jitter": 0.5}}.get(kind, {})
    chosen = 1 if kind == "hash" else 2
    moe = replace(spec.moe, num_experts_per_tok=chosen, router=replace(spec.moe.router, **router))
    spec = replace(spec, moe=moe)
    model = build(spec)
    options: dict[str, Any] = {}
    if kind == "packed":
        options["packed"] = PackedSequences((9, 5), (0, 3))
    if kind == "recomputed":
        options["checkpoint_activations"] = True
    if kind == "drawn":
        options["routing"] = RoutingOptions(seeds_B=torch.tensor([11]))
    if kind == "replayed":
        recorded = chosen_experts(build(spec, seed=5)(TOKENS).routing)
        options["routing"] = RoutingOptions(replayed_experts_BTLK=recorded)
    whole = model(TOKENS, **options)
    x_BTD, routing = model.embed(TOKENS), ()
    for layers in stages(3, cuts):
        x_BTD, routed = model.run_layers(x_BTD, layers=layers, tokens_BT=TOKENS, **options)
        routing += routed
    assert torch.equal(model.norm(x_BTD), whole.hidden_BTD)
    assert torch.equal(chosen_experts(routing), chosen_experts(whole.routing))


def test_a_stage_keeps_a_cache_of_its_own_layers(spec: ModelSpec) -> None:
    model, cuts = build(spec), stages(spec.num_hidden_layers, (1,))
    caches = [StaticCache.allocate(spec, batch_size=1, max_length=20) for _ in cuts]
    for cache, layers in zip(caches, cuts, strict=True):
        cache.layers = cache.layers[layers.start : layers.stop]
    outputs: list[Tensor] = []
    for tokens_BT in TOKENS.split([8, 1, 5], dim=1):
        x_BTD = model.embed(tokens_BT)
        for cache, layers in zip(caches, cuts, strict=True):
            x_BTD, _ = model.run_layers(x_BTD, layers=layers, cache=cache)
        outputs.append(model.norm(x_BTD))
    torch.testing.assert_close(torch.cat(outputs, 1), model(TOKENS).hidden_BTD, rtol=1e-4, atol=1e-5)


def test_a_stage_refuses_more_context_than_the_model_has(grouped_spec: Callable[..., ModelSpec]) -> None:
    model = build(grouped_spec(max_position_embeddings=8))
    with pytest.raises(ContextError, match="14 exceed the model's context of 8"):
        model.run_layers(torch.zeros(1, 14, 32))
