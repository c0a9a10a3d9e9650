"""Needle scores against a plain loop, and on models whose answers are known beforehand."""

from __future__ import annotations

import math

import pytest
import torch

from fathom.errors import ContextError
from fathom.evals.needle import NeedleTrial, needle_in_haystack, score_answers
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.spec import GroupedQueryAttention, ModelSpec
from tests.recording_progress import RecordingProgress, Update


def model() -> Decoder:
    spec = ModelSpec(
        name="tiny",
        family="llama",
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        attention=GroupedQueryAttention(num_heads=2, num_kv_heads=2, head_dim=8),
        max_position_embeddings=24,
        intermediate_size=24,
        initializer_range=0.4,
    )
    return build(spec, seed=2)


def greedy(decoder: Decoder, prompt: list[int], count: int) -> tuple[list[int], float]:
    tokens, logprob = list(prompt), 0.0
    for _ in range(count):
        with torch.no_grad():
            logits = decoder.logits(decoder(torch.tensor([tokens])).hidden_BTD[0, -1])
        tokens.append(int(logits.argmax()))
        logprob += float(logits.log_softmax(-1).max())
    return tokens[len(prompt) :], logprob


PROMPTS = [[1, 2, 3], [4, 5, 6, 7], [8, 9, 10], [11] * 12]


@pytest.mark.parametrize("batch_tokens", [1, 14, 1000])
def test_one_pass_agrees_with_greedy_decoding(batch_tokens: int) -> None:
    decoder = model()
    answers, expected = zip(*(greedy(decoder, prompt, 4) for prompt in PROMPTS), strict=True)
    scored = score_answers(decoder, PROMPTS, answers, batch_tokens=batch_tokens)
    assert [s.logprob for s in scored] == pytest.approx(expected, rel=1e-4)
    assert all(s.exact for s in scored)
    wrong = [[*answer[:-1], (answer[-1] + 1) % 30] for answer in answers]
    assert not any(s.exact for s in score_answers(decoder, PROMPTS, wrong))


def test_table_holds_means_by_length_and_depth() -> None:
    decoder = model()
    trials = []
    for length, depth, prompt, right in [
        (16, 1.0, [1, 2, 3], True),
        (16, 1.0, [4, 5, 6], False),
        (8, 0.0, [7] * 3, True),
    ]:
        answer, _ = greedy(decoder, prompt, 2)
        if not right:
            answer = [answer[0], (answer[1] + 1) % 30]
        blank = [(token + 1) % 30 for token in prompt]
        trials.append(
            NeedleTrial(length=length, depth=depth, prompt_ids=prompt, blank_prompt_ids=blank, answer_ids=answer)
        )
    trials.append(NeedleTrial(length=8, depth=1.0, prompt_ids=[1], blank_prompt_ids=[1], answer_ids=[3]))
    trials.append(NeedleTrial(length=16, depth=0.0, prompt_ids=[1], blank_prompt_ids=[1], answer_ids=[3]))
    progress = RecordingProgress()
    result = needle_in_haystack(decoder, trials, progress=progress)
    assert (result.lengths, result.depths) == ((8, 16), (0.0, 1.0))
    assert result.accuracy[0][0] == 1.0
    assert result.accuracy[1][1] == 0.5
    gains = []
    for trial in trials[:2]:
        pair = score_answers(decoder, [trial.prompt_ids, trial.blank_prompt_ids], [trial.answer_ids] * 2)
        gains.append((pair[0].logprob - pair[1].logprob) / math.log(2) / 2)
    assert result.gain_bits[1][1] == pytest.approx(sum(gains) / 2, rel=1e-4)
    assert result.gain_bits[0][1] == result.gain_bits[1][0] == 0.0
    assert progress.updates[-1] == Update(10, 10, "prompts")


def test_a_prompt_beyond_the_context_is_refused() -> None:
    with pytest.raises(ContextError, match="exceed the model's context of 24"):
        score_answers(model(), [[1] * 24], [[2, 3]])
