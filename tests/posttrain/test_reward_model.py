"""Reward models: a score is one logit whatever pass it is computed in, and learning pulls good and bad apart."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fathom.chat import encode_chat
from fathom.errors import DataError
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.posttrain.preferences import GroupLoader
from fathom.posttrain.reward_model import (
    ReasoningGenerator,
    RewardObjective,
    choose_score_token,
    clear_score,
    conversation,
    make_score_fn,
    make_step_score_fn,
    score,
    scoring_example,
)
from fathom.posttrain.rewards.base import RewardInput
from fathom.posttrain.rewards.judge import Judge
from fathom.spec import GroupedQueryAttention, ModelSpec
from fathom.spec.posttrain import PairwiseLoss, PointwiseLoss, RewardModelLoss
from fathom.spec.problem import Problem
from fathom.spec.rewards import ModelReward
from fathom.spec.sampling import Completion, SamplingParams
from fathom.spec.train import AdamWSpec, BatchSpec, Constant, TrainSpec
from fathom.tokenizer import Tokenizer, train_bpe
from fathom.train import Trainer
from fathom.train.metrics import read_json_lines
from fathom.train.optimizer import make_optimizer
from fathom.train.step import StepRunner
from tests.train.accumulate import take

SPEC = ModelSpec(
    name="tiny",
    family="llama",
    vocab_size=330,
    hidden_size=32,
    num_hidden_layers=2,
    attention=GroupedQueryAttention(num_heads=4, num_kv_heads=2, head_dim=8),
    max_position_embeddings=64,
    intermediate_size=48,
    initializer_range=0.2,
)
TRAIN = TrainSpec(
    sequence_length=16,
    total_tokens=16 * 4 * 40,
    batch=BatchSpec(size=4, micro_batch_size=1),
    optimizer=AdamWSpec(lr=1e-3, weight_decay=0.0),
    schedule=Constant(),
    log_every_steps=1,
    max_grad_norm=1e9,
)
SCORE = 2
SEQUENCES = [[7, 30, 31], [7, 31, 30, 29, 1], [9, 40, 41, 42], [9, 42], [11, 50, 51, 1], [11, 52, 51, 1]]
"""Good and bad in turn: good ones rise."""


@pytest.fixture(params=[False, True], ids=["own head", "tied"])
def model(request: pytest.FixtureRequest) -> Decoder:
    return build(replace(SPEC, tie_word_embeddings=request.param), seed=4)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["What is two plus three? It is five, since three follows two.\n" * 4], vocab_size=330)


def plain_score(model: Decoder, sequence: Sequence[int]) -> torch.Tensor:
    """One sequence alone, all logits."""
    return model.logits(model(torch.tensor([sequence])).hidden_BTD)[0, -1, SCORE]


@pytest.mark.parametrize("tokens", [1, 9, 10**6])
def test_scores_are_logits_of_the_score_token_however_passes_are_cut(model: Decoder, tokens: int) -> None:
    wanted = [plain_score(model, sequence).item() for sequence in SEQUENCES]
    assert score(model, SEQUENCES, score_token=SCORE, tokens=tokens) == pytest.approx(wanted, abs=1e-5)
    assert score(model, [], score_token=SCORE) == []


@pytest.mark.parametrize("loss", [PairwiseLoss(margin=0.5), PointwiseLoss(form="mse"), PointwiseLoss(form="bce")])
def test_loss_and_gradient_equal_plain_forward_passes(model: Decoder, loss: RewardModelLoss) -> None:
    worth = [1.0, 0.25, 0.5, 0.0, 1.0, 0.0]
    if isinstance(loss, PairwiseLoss):
        groups = [tuple(map(scoring_example, SEQUENCES[i : i + 2])) for i in (0, 2, 4)]
    else:
        groups = [(scoring_example(*each),) for each in zip(SEQUENCES, worth, strict=True)]
    batch = GroupLoader(groups, sequence_length=sum(map(len, SEQUENCES)), seed=1).next(1)
    runner = StepRunner(model, make_optimizer(model, TRAIN.optimizer), TRAIN, objective=RewardObjective(loss, SCORE))
    gradients = take(runner, batch, 1, observe=True)
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    scores = torch.stack([plain_score(model, sequence) for sequence in SEQUENCES])
    if isinstance(loss, PairwiseLoss):
        wanted = torch.stack([-torch.log(torch.sigmoid(scores[i] - scores[i + 1] - 0.5)) for i in (0, 2, 4)]).mean()
    elif loss.form == "mse":
        wanted = ((scores - torch.tensor(worth)) ** 2).mean()
    else:
        p, y = torch.sigmoid(scores), torch.tensor(worth)
        wanted = -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()
    wanted.backward()
    assert gradients.loss == pytest.approx(wanted.item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [PairwiseLoss(), PointwiseLoss(form="bce")])
def test_learning_pulls_good_and_bad_answers_apart(model: Decoder, loss: RewardModelLoss, tmp_path: Path) -> None:
    clear_score(model, SCORE)
    assert score(model, SEQUENCES, score_token=SCORE) == [0.0] * 6
    pairs = [(scoring_example(SEQUENCES[i]), scoring_example(SEQUENCES[i + 1])) for i in (0, 2, 4)]
    single = [(scoring_example(sequence, float(i % 2 == 0)),) for i, sequence in enumerate(SEQUENCES)]
    loader = GroupLoader(pairs if isinstance(loss, PairwiseLoss) else single, sequence_length=16, seed=1)
    Trainer(model, TRAIN, loader, tmp_path, objective=RewardObjective(loss, SCORE)).run()
    lines = read_json_lines(tmp_path / "metrics.jsonl")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert lines[-1]["loss"] < 0.3
    scores = score(model, SEQUENCES, score_token=SCORE)
    assert all(good > bad + 2 for good, bad in zip(scores[::2], scores[1::2], strict=True))
    result = {"accuracy", "margin"} if isinstance(loss, PairwiseLoss) else {"score", "error"}
    assert result <= lines[-1].keys()


def test_the_score_token_is_one_that_no_text_uses(tokenizer: Tokenizer) -> None:
    asked = [{"role": "user", "content": "2 + 3?"}]
    text = conversation(tokenizer, asked, "five")
    assert text == encode_chat(
        tokenizer, [*asked, {"role": "assistant", "content": "five"}], add_generation_prompt=False
    )
    assert choose_score_token(tokenizer, 330, [text]) == tokenizer.pad_id
    other = choose_score_token(tokenizer, 330, [text, [tokenizer.pad_id]])
    assert other in tokenizer.special_ids - set(text) - {tokenizer.eos_id, tokenizer.pad_id}
    everything = [sorted(tokenizer.special_ids)]
    size = tokenizer.vocab_size
    assert choose_score_token(tokenizer, size + 2, everything) == size + 1
    with pytest.raises(DataError, match="add a padding token"):
        choose_score_token(tokenizer, size, everything)


def answered(question: str, answer: str) -> RewardInput:
    problem = Problem(id="1", task="sum", question=question, answer="5")
    return RewardInput(prompt=f"asked by another template: {question}", answer=answer, problem=problem)


def test_a_judge_asks_the_model_and_counts_what_does_not_fit_it(model: Decoder, tokenizer: Tokenizer) -> None:
    scores = make_score_fn(model, tokenizer, score_token=SCORE)
    answers = [answered("2 + 3?", "five"), answered("2?", "x" * 500), answered("2?", "<think>no</think>six")]
    read = [
        conversation(tokenizer, [{"role": "user", "content": a.problem.question}], a.answer)
        for a in (answers[0], answers[2])
    ]
    wanted = score(model, read, score_token=SCORE)
    with Judge([ModelReward(step="rm", name="helpful", weight=2.0)], external={"helpful": scores}) as judge:
        first, second, third = judge.judge(answers)
    assert [first.total, third.total] == pytest.approx([2 * value for value in wanted], abs=1e-5)
    assert second.total == 0
    assert second.failures == {"helpful": "not finite"}
    assert judge.failures == {"helpful/not finite": 1}


class Thinker:
    """Writes as many tokens as the prompt has, no more than it may."""

    def sample(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        assert isinstance(params, SamplingParams)
        assert params.temperature == 0
        ids = [tuple(range(100, 100 + min(params.max_tokens, len(prompt)))) for prompt in prompts]
        return [Completion(token_ids=each, logprobs=(0.0,) * len(each), finish_reason="stop") for each in ids]

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[int]:
        raise NotImplementedError


def test_reasoning_comes_before_the_score(model: Decoder, tokenizer: Tokenizer) -> None:
    reasoning = ReasoningGenerator(sampler=Thinker(), tokenizer=tokenizer, max_tokens=5)
    text = conversation(tokenizer, [{"role": "user", "content": "2 + 3?"}], "five")
    (thought,) = reasoning.extend([text])
    assert thought[: len(text)] == text
    begin, end = tokenizer.special_tokens["<think>"], tokenizer.special_tokens["</think>"]
    assert thought[len(text) :] == [begin, *tokenizer.encode("\n"), 100, 101, 102, 103, 104, end]
    assert len(thought) - len(text) == ReasoningGenerator.token_budget(tokenizer, 5)
    scores = make_score_fn(model, tokenizer, score_token=SCORE, reasoning=reasoning)
    assert scores([answered("2 + 3?", "five")]) == pytest.approx(score(model, [thought], score_token=SCORE), abs=1e-6)
    longest = 64 - ReasoningGenerator.token_budget(tokenizer, 5)
    filler = "x" * (longest - len(conversation(tokenizer, [{"role": "user", "content": "?"}], "")))
    found = scores([answered("?", filler), answered("?", filler + "x")])
    assert [math.isnan(value) for value in found] == [False, True]


@pytest.mark.parametrize(
    ("answer", "beginnings"),
    [
        (
            "<think>two; three\n</think>six",
            [
                (10, {"content": "", "reasoning_content": "two"}),
                (17, {"content": "", "reasoning_content": "two; three"}),
                (29, {"content": "six", "reasoning_content": "two; three"}),
            ],
        ),
        ("two; three", [(3, {"content": "two"}), (10, {"content": "two; three"})]),
        ("six", [(3, {"content": "six"})]),
    ],
)
def test_every_step_is_scored_as_if_the_answer_ended_there(
    model: Decoder, tokenizer: Tokenizer, answer: str, beginnings: list[tuple[int, dict[str, str]]]
) -> None:
    asked = [{"role": "user", "content": "2 + 3?"}]
    wanted = [
        plain_score(model, conversation(tokenizer, asked, {"role": "assistant", **said})).item()
        for _, said in beginnings
    ]
    scores = make_step_score_fn(model, tokenizer, score_token=SCORE)
    reward = ModelReward(step="rm", steps=True)
    with Judge([reward], external={"model": scores}) as judge:
        first, huge, again = judge.judge([answered("2 + 3?", text) for text in (answer, "x" * 500, answer)])
    assert [step.end for step in first.steps["model"]] == [end for end, _ in beginnings]
    assert [step.value for step in first.steps["model"]] == pytest.approx(wanted, abs=1e-5)
    assert [step.value for step in again.steps["model"]] == pytest.approx(wanted, abs=1e-5)
    assert first.total == pytest.approx(sum(wanted) / len(wanted), abs=1e-5)
    assert huge.failures == {"model": "not finite"}


def test_of_long_thinking_the_first_steps_are_scored(model: Decoder, tokenizer: Tokenizer) -> None:
    text = "<think>" + "1;" * 100 + "</think>1"
    wide = build(replace(SPEC, max_position_embeddings=512), seed=4)
    (found,) = make_step_score_fn(wide, tokenizer, score_token=SCORE)([answered("?", text)])
    assert [step.end for step in found] == [8 + 2 * i for i in range(63)] + [len(text)]
    assert make_step_score_fn(wide, tokenizer, score_token=SCORE)([]) == []


def test_clearing_changes_one_row_alone(model: Decoder) -> None:
    before = copy.deepcopy(model.state_dict())
    clear_score(model, SCORE)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"embed_tokens.weight" if model.spec.tie_word_embeddings else "lm_head.weight"}
    (name,) = changed
    rows = (model.state_dict()[name] != before[name]).any(1).nonzero().flatten().tolist()
    assert rows == [SCORE]
