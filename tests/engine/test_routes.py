"""What the engine records of routing against one whole forward pass over the same tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.engine.routed_experts import RoutedExpertsRecorder
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.spec import EngineSpec, GroupLimited, MixtureOfExperts, RouterSpec, SamplingParams
from tests.engine.drafting import with_mtp
from tests.engine.reference import finish, ids, tiny, verify
from tests.engine.test_engine_mixtures import EOS, random_request

SPEC = EngineSpec(page_size=4, cache_tokens=400, max_batch=6, step_tokens=20, record_routing=True)
GREEDY = SamplingParams(max_tokens=12, temperature=0.0)


@cache
def model(kind: str) -> Decoder:
    """V3's router over five layers, or a plain top-2 of 4; mixtures are layers 2 and 4."""
    v3 = RouterSpec(
        score="sigmoid",
        select=GroupLimited(n_group=4, topk_group=2, group_score="top2_sum"),
        selection_bias=True,
        normalize=True,
        scale=2.5,
    )
    experts = MixtureOfExperts(
        n_routed_experts=8 if kind == "v3" else 4,
        num_experts_per_tok=3 if kind == "v3" else 2,
        moe_intermediate_size=8,
        n_shared_experts=1,
        router=v3 if kind == "v3" else RouterSpec(),
    )
    base = tiny("window" if kind == "window" else "mla").spec
    spec = replace(
        base, moe=experts, num_hidden_layers=5, moe_layer_freq=2, first_k_dense_replace=1, family="deepseek_v3"
    )
    made = build(spec, dtype=torch.float64, seed=11).eval()
    for name, buffer in made.named_buffers():
        if name.endswith("bias"):
            buffer.copy_(torch.linspace(-0.2, 0.2, 8).roll(len(name)))
    return made


@torch.inference_mode()
def whole(decoder: Decoder, tokens: Sequence[int]) -> Tensor:
    """What one pass over all tokens but the last chooses, (P, L, K)."""
    routing = decoder(torch.tensor([tokens[:-1]])).routing
    return torch.stack([routed.indices_BTK[0] for routed in routing], dim=1)


def check(decoder: Decoder, tokens: Sequence[int], routing: object) -> int:
    """Compare the rows that are known, and return how many are not."""
    assert isinstance(routing, Tensor)
    assert routing.dtype == torch.int16
    expected = whole(decoder, tokens)
    assert routing.shape == expected.shape
    known = (routing >= 0).flatten(1).all(1)
    assert torch.equal(routing[known].long(), expected[known])
    assert (routing[~known] == -1).all()
    return int((~known).sum())


@pytest.mark.parametrize("kind", ["v3", "plain", "window"])
@pytest.mark.parametrize(("max_batch", "step_tokens"), [(1, 512), (2, 3), (4, 512)])
def test_batches_and_chunks_record_what_a_whole_pass_chooses(kind: str, max_batch: int, step_tokens: int) -> None:
    decoder = model(kind)
    engine = Engine(decoder, spec=replace(SPEC, max_batch=max_batch, step_tokens=step_tokens, prefix_cache=False))
    prompts = [(1, 2, 3), (4,), tuple(range(20)), (9, 8, 7)]
    for prompt, completion in zip(prompts, engine.sample(prompts, replace(GREEDY, max_tokens=60)), strict=True):
        assert len(completion.token_ids) == 60
        assert check(decoder, [*prompt, *completion.token_ids], completion.routing) == 0
    assert len({tuple(row) for row in completion.routing[:, 0].tolist()}) > 2


def test_the_token_that_ends_an_answer_makes_its_last_token_one_that_was_run() -> None:
    decoder = model("v3")
    (plain,) = Engine(decoder, spec=SPEC).sample([(1, 2, 3)], GREEDY)
    end = plain.token_ids[5]
    (stopped,) = Engine(decoder, eos_ids=[end], spec=SPEC).sample([(1, 2, 3)], GREEDY)
    assert stopped.finish_reason == "stop"
    assert check(decoder, [1, 2, 3, *stopped.token_ids, end], stopped.routing) == 0


def test_rows_of_pages_found_in_the_prefix_cache_are_unknown_and_no_others() -> None:
    decoder = model("v3")
    engine = Engine(decoder, spec=SPEC)
    prompt = tuple(range(11))
    names = [engine.submit(Request(prompt=(*prompt, last), params=GREEDY)) for last in (20, 20, 30)]
    outputs = finish(engine)
    for name, last, cached in zip(names, (20, 20, 30), (0, 8, 8), strict=True):
        *earlier, latest = outputs[name]
        assert latest.cached_tokens == cached
        assert all(output.routing is None for output in earlier)
        assert check(decoder, [*prompt, last, *ids(outputs[name])], latest.routing) == cached
        assert latest.routing is not None
        assert (latest.routing[:cached] == -1).all()


@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("kind", ["v3", "plain"])
def test_preempted_requests_write_again_what_they_compute_again(kind: str, prefix_cache: bool) -> None:
    draw, decoder = random.Random(3), model(kind)
    engine = Engine(decoder, eos_ids=EOS, spec=replace(SPEC, cache_tokens=72, prefix_cache=prefix_cache))
    requests = {engine.submit(each): each for each in (random_request(draw) for _ in range(30))}
    outputs = finish(engine)
    unknown = 0
    for name, request in requests.items():
        last = outputs[name][-1]
        ended = () if last.stop_token is None else (last.stop_token.token_id,)
        unknown += check(decoder, [*request.prompt, *ids(outputs[name]), *ended], last.routing)
    assert engine.stats.preemptions > 0
    assert (unknown > 0) == prefix_cache
    assert unknown < sum(len(request.prompt) for request in requests.values()) / 2


@pytest.mark.parametrize("weight", [1.0, 0.05])
def test_drafts_leave_rows_where_they_were_right_and_none_where_they_were_wrong(weight: float) -> None:
    decoder = with_mtp(weight)
    spec = replace(SPEC, drafting="mtp", draft_tokens=3, prefix_cache=False)
    prompts = [(n, 2 * n, 3) for n in range(6)]
    for max_tokens in (1, 2, 9, 25):
        engine = Engine(decoder, eos_ids=EOS, spec=spec)
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        for prompt, each in zip(prompts, engine.sample(prompts, params), strict=True):
            ended = () if each.stop_token is None else (each.stop_token.token_id,)
            assert check(decoder, [*prompt, *each.token_ids, *ended], each.routing) == 0
    assert 0 < engine.stats.accepted < engine.stats.drafted


def test_a_request_ended_from_outside_tells_of_the_tokens_it_ran() -> None:
    decoder = with_mtp(1.0)
    engine = Engine(decoder, spec=replace(SPEC, drafting="mtp", draft_tokens=3))
    name, unread = (engine.submit(Request(prompt=(n, n), params=GREEDY)) for n in (3, 4))
    unread_output = engine.end(unread, "cancelled")
    assert unread_output is not None
    assert unread_output.routing is None
    drawn = [token.token_id for _ in range(4) for output in engine.step() for token in output.tokens]
    last = engine.end(name, "cancelled")
    assert last is not None
    assert check(decoder, [3, 3, *drawn], last.routing) == 0
    verify(engine)


def test_routing_can_be_learned_from_and_is_none_where_nobody_asked() -> None:
    decoder = model("v3")
    (recorded,) = Engine(decoder, spec=SPEC).sample([(1, 2, 3)], GREEDY)
    (plain,) = Engine(decoder).sample([(1, 2, 3)], GREEDY)
    assert plain.routing is None
    assert recorded == replace(plain, details=recorded.details, logprobs=recorded.logprobs)
    assert recorded.logprobs == pytest.approx(plain.logprobs)
    assert isinstance(recorded.routing, Tensor)
    assert not recorded.routing.is_inference()


def test_a_dense_model_has_nothing_to_record() -> None:
    (completion,) = Engine(tiny("gqa"), spec=SPEC).sample([(1, 2, 3)], GREEDY)
    assert (len(completion.token_ids), completion.routing) == (12, None)


def test_a_record_grows_and_is_written_over() -> None:
    record = RoutedExpertsRecorder(2, 1)
    record.write(150, torch.full((3, 2, 1), 5))
    record.write(151, torch.full((1, 2, 1), 7))
    assert record.first(1000)[:, 0, 0].tolist() == [-1] * 150 + [5, 7, 5]
    assert record.first(10).shape == (10, 2, 1)
