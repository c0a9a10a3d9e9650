"""Generation against the plain loop that runs the whole sequence again for every token."""

from __future__ import annotations

import pytest
import torch

from fathom.engine.engine import Engine
from fathom.errors import ContextError, SpecError
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.spec import GroupedQueryAttention, LatentAttention, MixtureOfExperts, ModelSpec, SamplingParams
from fathom.spec.attention import Attention
from fathom.spec.engine import EngineSpec

LATENT = LatentAttention(num_heads=2, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8)
WINDOW = GroupedQueryAttention(num_heads=2, num_kv_heads=1, head_dim=8, sliding_window=6)


def model(attention: Attention = LATENT) -> Decoder:
    spec = ModelSpec(
        name="tiny",
        family="deepseek_v2" if isinstance(attention, LatentAttention) else "mixtral",
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        attention=attention,
        max_position_embeddings=32,
        intermediate_size=24,
        moe=MixtureOfExperts(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, n_shared_experts=1),
        first_k_dense_replace=1,
        initializer_range=0.3,
    )
    return build(spec, seed=3)


def greedy_oracle(decoder: Decoder, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    tokens, logprobs = list(prompt), []
    with torch.no_grad():
        for _ in range(count):
            logits = decoder.logits(decoder(torch.tensor([tokens])).hidden_BTD[0, -1])
            tokens.append(int(logits.argmax()))
            logprobs.append(float(logits.log_softmax(-1)[tokens[-1]]))
    return tokens[len(prompt) :], logprobs


PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11, 12, 13], [9, 8, 7]]


@pytest.mark.parametrize("attention", [LATENT, WINDOW], ids=["latent", "window"])
@pytest.mark.parametrize(("max_batch", "step_tokens"), [(1, 512), (2, 2), (4, 4), (32, 512)])
def test_batches_chunks_and_caches_change_nothing(attention: Attention, max_batch: int, step_tokens: int) -> None:
    decoder = model(attention)
    engine = Engine(decoder, spec=EngineSpec(max_batch=max_batch, step_tokens=step_tokens, page_size=4))
    params = [SamplingParams(max_tokens=n, temperature=0.0) for n in (9, 12, 5, 9)]
    completions = engine.sample(PROMPTS, params)
    for prompt, p, completion in zip(PROMPTS, params, completions, strict=True):
        tokens, logprobs = greedy_oracle(decoder, prompt, p.max_tokens)
        assert list(completion.token_ids) == tokens
        assert completion.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert completion.finish_reason == "length"


def test_a_seeded_request_draws_the_same_alone_and_in_a_batch() -> None:
    engine = Engine(model())
    params = [SamplingParams(max_tokens=10, temperature=1.5, top_p=0.9, seed=i) for i in range(4)]
    together = engine.sample(PROMPTS, params)
    for prompt, p, completion in zip(PROMPTS, params, together, strict=True):
        assert engine.sample([prompt], p)[0].token_ids == completion.token_ids
        assert tuple(engine.stream(prompt, p)) == completion.token_ids


def test_different_seeds_draw_differently() -> None:
    engine = Engine(model())
    drawn = {engine.sample([[1]], SamplingParams(max_tokens=12, seed=s))[0].token_ids for s in range(5)}
    assert len(drawn) == 5


def test_end_of_sequence_and_stop_tokens_end_an_answer_and_are_not_part_of_it() -> None:
    decoder = model()
    whole, _ = greedy_oracle(decoder, [1, 2, 3], 10)
    end = next(t for t in whole if whole.index(t) > 1)
    at = whole.index(end)
    greedy = SamplingParams(max_tokens=10, temperature=0.0)
    stopped = Engine(decoder, eos_ids=[end]).sample([[1, 2, 3]], greedy)[0]
    assert (list(stopped.token_ids), stopped.finish_reason) == (whole[:at], "stop")
    assert stopped.stop_token is not None
    logits_V = decoder.logits(decoder(torch.tensor([[1, 2, 3, *whole[:at]]])).hidden_BTD[0, -1])
    assert stopped.stop_token.token_id == end
    assert stopped.stop_token.logprob == pytest.approx(logits_V.log_softmax(-1)[end].item(), abs=1e-4)
    assert list(Engine(decoder, eos_ids=[end]).stream([1, 2, 3], greedy)) == whole[:at]
    by_parameter = SamplingParams(max_tokens=10, temperature=0.0, stop_token_ids=(end,))
    assert list(Engine(decoder).sample([[1, 2, 3]], by_parameter)[0].token_ids) == whole[:at]
    ignoring = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True)
    assert list(Engine(decoder, eos_ids=[end]).sample([[1, 2, 3]], ignoring)[0].token_ids) == whole


def test_the_context_can_be_filled_to_its_last_token() -> None:
    completion = Engine(model()).sample([[1] * 20], SamplingParams(max_tokens=12, seed=0))[0]
    assert len(completion.token_ids) == 12


def test_a_prompt_that_does_not_fit_names_the_numbers_and_the_remedy() -> None:
    engine = Engine(model())
    with pytest.raises(ContextError, match=r"20 tokens and max_tokens 13 exceed the context of 32.*at most 12"):
        engine.stream([1] * 20, SamplingParams(max_tokens=13))
    with pytest.raises(ContextError, match="no tokens"):
        engine.sample([[]], SamplingParams())
    with pytest.raises(SpecError, match="token 40 is outside the vocabulary of 40"):
        engine.sample([[40]], SamplingParams(max_tokens=1))
    with pytest.raises(SpecError, match="2 for 1 prompts"):
        engine.sample([[1]], [SamplingParams(max_tokens=1)] * 2)
