"""Log-likelihoods of choices against one forward pass for each choice."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fathom.evals.multiple_choice import ChoiceResult, Question, score_questions
from fathom.families import preset
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.spec import GroupedQueryAttention, ModelSpec

DENSE = ModelSpec(
    name="tiny",
    family="llama",
    vocab_size=30,
    hidden_size=16,
    num_hidden_layers=2,
    attention=GroupedQueryAttention(num_heads=2, num_kv_heads=1, head_dim=8),
    max_position_embeddings=24,
    intermediate_size=24,
    initializer_range=0.4,
)


def models() -> dict[str, ModelSpec]:
    window = dataclasses.replace(DENSE.attention, sliding_window=5)
    latent = dataclasses.replace(preset("bench-t"), vocab_size=30, num_hidden_layers=2, max_position_embeddings=24)
    return {
        "dense": DENSE,
        "window": dataclasses.replace(DENSE, family="mistral", attention=window),
        "latent experts": dataclasses.replace(latent, initializer_range=0.1),
    }


def question(context: list[int], *choices: list[int], answer: int = 0) -> Question:
    return Question(
        context_ids=context, choices_ids=choices, choice_bytes=[len(choice) * 2 for choice in choices], answer=answer
    )


QUESTIONS = [
    question([1, 2, 3, 4, 5, 6, 7], [8, 9], [10], [11, 12, 13, 14]),
    question([1, 2, 3, 4, 9], [8], [7, 7, 7, 7, 7]),
    question([1, 2, 3, 4], [5, 6], [6, 5]),
    question([1, 2, 3, 4, 20, 21, 22, 23, 24, 25], [3, 3, 3], [4]),
]


def oracle(decoder: Decoder, context: list[int], choice: list[int]) -> float:
    with torch.no_grad():
        logits = decoder.logits(decoder(torch.tensor([context + choice[:-1]])).hidden_BTD[0]).log_softmax(-1)
    return sum(float(logits[len(context) - 1 + i, token]) for i, token in enumerate(choice))


@pytest.mark.parametrize("name", ["dense", "window", "latent experts"])
def test_every_choice_has_the_log_likelihood_of_its_own_pass(name: str) -> None:
    decoder = build(models()[name], seed=3)
    scored = score_questions(decoder, QUESTIONS)
    for asked, result in zip(QUESTIONS, scored, strict=True):
        expected = [oracle(decoder, list(asked.context_ids), list(choice)) for choice in asked.choices_ids]
        assert result.logprobs == pytest.approx(expected, abs=1e-4)
        assert result.chosen == expected.index(max(expected))
        per_byte = [value / size for value, size in zip(expected, asked.choice_bytes, strict=True)]
        assert result.chosen_norm == per_byte.index(max(per_byte))
        assert result.truncated == 0


def test_both_choices_occur_so_that_the_normalised_one_means_something() -> None:
    scored = score_questions(build(DENSE, seed=3), QUESTIONS)
    assert any(result.chosen != result.chosen_norm for result in scored)


def test_a_question_alone_scores_as_among_others() -> None:
    decoder = build(DENSE, seed=3)
    together = score_questions(decoder, QUESTIONS)
    for asked, result in zip(QUESTIONS, together, strict=True):
        (alone,) = score_questions(decoder, [asked])
        assert alone.logprobs == pytest.approx(result.logprobs, abs=1e-5)


def test_a_context_too_long_loses_its_beginning() -> None:
    decoder = build(DENSE, seed=3)
    context = [i % 29 for i in range(40)]
    (result,) = score_questions(decoder, [question(context, [1, 2, 3], [4])])
    assert result.truncated == 40 - 22
    assert result.logprobs[0] == pytest.approx(oracle(decoder, context[18:], [1, 2, 3]), abs=1e-4)


def test_results_are_told_one_by_one_and_training_mode_is_given_back() -> None:
    decoder, heard = build(DENSE, seed=3).train(), list[tuple[int, ChoiceResult]]()
    results = score_questions(decoder, QUESTIONS, on_result=lambda *event: heard.append(event))
    assert heard == list(enumerate(results))
    assert decoder.training
    assert score_questions(decoder, []) == []
