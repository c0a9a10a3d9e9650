"""A model keeps its mode through every evaluation: when it ends, when it raises, and when it is interrupted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fathom.evals.bits_per_byte import bits_per_byte
from fathom.evals.multiple_choice import Question, score_questions
from fathom.evals.needle import score_answers
from fathom.model import Decoder, build
from fathom.model.eval_mode import eval_mode
from fathom.posttrain.preferences.batched_forward import batched_hidden_states
from fathom.spec import ModelSpec

QUESTION = Question(context_ids=[1, 2, 3], choices_ids=([4], [5, 6]), choice_bytes=(1, 2), answer=0)

EVALUATIONS: dict[str, Callable[[Decoder], object]] = {
    "bits per byte": lambda model: bits_per_byte(model, torch.arange(20), text_bytes=20, context=8),
    "multiple choice": lambda model: score_questions(model, [QUESTION]),
    "needle": lambda model: score_answers(model, [[1, 2]], [[3]]),
    "hidden states": lambda model: list(batched_hidden_states(model, [torch.arange(5)])),
}


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.fixture
def model(grouped_spec: Callable[..., ModelSpec]) -> Decoder:
    return build(grouped_spec(), seed=1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_an_evaluation_leaves_the_model_in_its_mode(
    model: Decoder, evaluation: str, error: type[BaseException] | None, training: bool
) -> None:
    model.train(training)
    seen = []

    def look(module: nn.Module, inputs: object, output: object) -> None:
        seen.append(module.training)
        if error is not None:
            raise error

    model.layers[0].register_forward_hook(look)
    if error is None:
        EVALUATIONS[evaluation](model)
    else:
        with pytest.raises(error):
            EVALUATIONS[evaluation](model)
    assert seen
    assert not any(seen)
    assert modes(model) == [training] * len(modes(model))


def test_modules_in_another_mode_than_the_model_keep_it(model: Decoder) -> None:
    model.train()
    model.layers[1].eval()
    before = modes(model)
    with eval_mode(model):
        assert not any(modes(model))
    assert modes(model) == before
    assert len(set(before)) == 2


def test_hidden_states_left_half_way_leave_the_model_in_its_mode(model: Decoder) -> None:
    model.train()
    states = batched_hidden_states(model, [torch.arange(5), torch.arange(6)], tokens=6)
    next(states)
    assert not model.training
    states.close()  # type: ignore[attr-defined]
    assert model.training
