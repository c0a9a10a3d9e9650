"""Ids without a token: never sampled, however likely the model finds them, and log-probabilities stay the trainer's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.errors import SpecError
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.spec import EngineSpec, SamplingParams
from tests.engine.drafting import with_mtp
from tests.engine.reference import finish, ids, tiny

SPEC = EngineSpec(page_size=4, cache_tokens=400, max_batch=4, step_tokens=40)
UNUSED = (5, 21, *range(40, 48))


@pytest.fixture(params=["gqa", "mtp"])
def padded(request: pytest.FixtureRequest) -> Decoder:
    """A model whose head finds ids without a token the likeliest, as a head may that was never trained on them."""
    source = tiny("gqa") if request.param == "gqa" else with_mtp(0.05)
    model = build(source.spec, dtype=torch.float64, seed=11).eval()
    model.load_state_dict(source.state_dict())
    with torch.no_grad():
        model.lm_head.weight[list(UNUSED)] *= 1.5
    return model


PARAMS = {
    "greedy": SamplingParams(max_tokens=12, temperature=0, logprobs=4),
    "sampled": SamplingParams(max_tokens=12, seed=3, logprobs=4),
    "filtered": SamplingParams(max_tokens=12, seed=3, top_p=0.9, top_k=20, frequency_penalty=0.5, logprobs=4),
    "biased": SamplingParams(max_tokens=12, seed=3, logit_bias=((47, 100.0),), prompt_logprobs=4),
}


@pytest.mark.parametrize("named", PARAMS)
def test_an_id_without_a_token_is_never_sampled_and_log_probabilities_are_those_of_the_whole_softmax(
    padded: Decoder, named: str
) -> None:
    spec = replace(SPEC, drafting="auto", draft_tokens=2)
    engine, prompts = Engine(padded, spec=spec, unused_ids=UNUSED), [(1, 2, 3 + n, 47) for n in range(4)]
    without = Engine(padded, spec=spec).sample(prompts, PARAMS[named])
    assert {token for each in without for token in each.token_ids} & set(UNUSED)
    for prompt, completion in zip(prompts, engine.sample(prompts, PARAMS[named]), strict=True):
        assert len(completion.token_ids) == 12
        assert not set(completion.token_ids) & set(UNUSED)
        tokens = (*prompt, *completion.token_ids)
        with torch.inference_mode():
            whole_TV = padded.logits(padded(torch.tensor([tokens])).hidden_BTD[0]).log_softmax(-1)
        expected = [float(whole_TV[place - 1, tokens[place]]) for place in range(len(prompt), len(tokens))]
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)
        named_ids = {token for each in (*completion.details, *completion.prompt[1:]) if each for token, _ in each.top}
        assert named_ids
        assert not named_ids & set(UNUSED)
        for place, each in enumerate(completion.prompt[1:], start=1):
            assert each is not None
            assert each.logprob == pytest.approx(float(whole_TV[place - 1, tokens[place]]), abs=1e-4)


def test_drafts_are_of_ids_with_a_token_too() -> None:
    model = build(with_mtp(0.0).spec, dtype=torch.float64, seed=11).eval()
    model.load_state_dict(with_mtp(0.0).state_dict())
    with torch.no_grad():
        model.lm_head.weight[list(UNUSED)] *= 1.5
    engine = Engine(model, spec=replace(SPEC, drafting="mtp", draft_tokens=2), unused_ids=UNUSED)
    engine.submit(Request(prompt=(1,), params=SamplingParams(max_tokens=30, temperature=0)))
    (outputs,) = finish(engine).values()
    assert len(ids(outputs)) == 30
    assert engine.stats.acceptance == 1.0


def test_an_end_of_sequence_id_is_sampled_though_the_tokenizer_has_no_token_of_it() -> None:
    model, greedy = tiny("gqa"), SamplingParams(max_tokens=12, temperature=0)
    whole = Engine(model, spec=SPEC).sample([(1, 2, 3)], greedy)[0].token_ids
    engine = Engine(model, spec=SPEC, eos_ids=[whole[0]], unused_ids=[whole[0]])
    assert engine.sample([(1, 2, 3)], greedy)[0].stop_token is not None


@pytest.mark.parametrize("unused", [(48,), (-1,), tuple(range(48))])
def test_unused_ids_outside_the_vocabulary_or_all_of_it_are_refused(unused: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match=f"unused_ids: {len(unused)} ids from .* of a vocabulary of 48; give ids of"):
        Engine(tiny("gqa"), spec=SPEC, unused_ids=unused)
