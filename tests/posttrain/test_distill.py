from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fathom.engine.engine import Engine
from fathom.errors import SpecError, TrainError
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.posttrain.distill import DistillTrainer
from fathom.posttrain.online import minibatches
from fathom.posttrain.problem_stream import ProblemStream
from fathom.posttrain.prompts import PromptFormatter
from fathom.posttrain.rollout import Rollout
from fathom.spec.engine import EngineSpec
from fathom.spec.posttrain import DistillationLoss
from fathom.spec.rollout import DistillSpec, RolloutSpec, TextPrompt
from fathom.spec.train import AdamWSpec, Checkpointing
from fathom.tokenizer import Tokenizer
from fathom.train.metrics import read_json_lines
from fathom.train.micro_batch import split
from fathom.train.optimizer import make_optimizer
from fathom.train.state import Position
from fathom.train.step import StepRunner
from tests.posttrain.conftest import DENSE, MODEL, Endless

SPEC = DistillSpec(
    optimizer=AdamWSpec(lr=1e-2, weight_decay=0.0),
    rollouts=4,
    rollout=RolloutSpec(questions=6, group_size=1, max_tokens=6, prompt=TextPrompt(text="Q {question} A")),
    micro_batch_tokens=64,
    max_logprob_difference=1e-3,
    checkpoint=Checkpointing(every_steps=1, every_seconds=None, keep=10),
)


def make(
    tokenizer: Tokenizer, directory: Path, spec: DistillSpec = SPEC, *, teacher: Decoder | None = None
) -> DistillTrainer:
    """A dense student, and a mixture of experts to teach it."""
    student = build(DENSE, seed=1)
    return DistillTrainer(
        student,
        spec,
        Engine(student, eos_ids=[tokenizer.eos_id], spec=EngineSpec(max_batch=16)),
        PromptFormatter(tokenizer, spec.rollout.prompt),
        ProblemStream([Endless()], seed=spec.seed),
        directory,
        teacher=build(MODEL, seed=2) if teacher is None else teacher,
    )


def written_out(student: Decoder, teacher: Decoder, rollouts: list[Rollout]) -> Tensor:
    """KL(student || teacher), a sum over the whole vocabulary, of every drawn token alike; one answer at a time."""
    found = []
    for rollout in rollouts:
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.answer_ids]])
        drawn = slice(len(rollout.prompt_ids) - 1, ids.shape[1] - 1)
        mine, theirs = (
            m.logits(m(ids[:, :-1]).hidden_BTD[0]).double().log_softmax(-1)[drawn] for m in (student, teacher)
        )
        found.append((mine.exp() * (mine - theirs.detach())).sum(-1))
    return torch.cat(found).mean()


@pytest.mark.parametrize("micro_batch_tokens", [40, 4096])
def test_a_step_has_the_gradient_of_the_whole_reverse_divergence(
    tmp_path: Path, tokenizer: Tokenizer, micro_batch_tokens: int
) -> None:
    trainer = make(tokenizer, tmp_path)
    rollout_batch = trainer.collect_rollouts(1)
    (batch,) = minibatches(rollout_batch, SPEC, 1)
    runner = StepRunner(
        trainer.model,
        make_optimizer(trainer.model, SPEC.optimizer),
        SPEC,
        objective=trainer.objective(),
        balanced=False,
    )
    micros = list(split(batch, 1, micro_batch_tokens, runner.device))
    assert (len(micros) > 1) == (micro_batch_tokens == 40)
    found = runner.accumulate(micros, len(batch.lengths), 1, observe=False)
    other = build(DENSE, seed=1)
    expected = written_out(other, build(MODEL, seed=2), list(rollout_batch.rollouts))
    expected.backward()  # type: ignore[no-untyped-call]
    assert found.objective == pytest.approx(expected.item(), abs=1e-5)
    assert trainer.reduce_metrics(found.sums)["divergence"] == pytest.approx(expected.item(), abs=1e-5)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, dict(other.named_parameters())[name].grad, rtol=1e-3, atol=1e-6, msg=name
        )
    assert all(parameter.grad is None for parameter in trainer.teacher.parameters())


def test_a_student_draws_near_its_teacher(tmp_path: Path, tokenizer: Tokenizer) -> None:
    trainer = make(tokenizer, tmp_path, replace(SPEC, rollouts=20))
    before = {name: tensor.clone() for name, tensor in trainer.teacher.state_dict().items()}
    trainer.run()
    logged = read_json_lines(tmp_path / "metrics.jsonl")
    lines = [{name: float(str(line[name])) for name in line if name != "alarms"} for line in logged]
    start, end = (sum(line["divergence"] for line in part) / 4 for part in (lines[:4], lines[-4:]))
    assert end < 0.7 * start
    assert all(line["logprob_difference"] < 1e-4 for line in lines)
    for line in lines:
        assert line["loss"] == pytest.approx(line["divergence"], rel=1e-5)
        assert line["updates"] == 1
        assert line["missing_answers"] == 0
    assert {"length", "finished", "entropy", "teacher_logprob", "logprob", "grad_norm", "lr"} <= set(lines[0])
    apart = [line["logprob"] - line["teacher_logprob"] for line in lines]  # an estimate of the divergence
    assert sum(apart[-4:]) < sum(apart[:4])
    for name, tensor in before.items():
        assert torch.equal(tensor, trainer.teacher.state_dict()[name]), name


@pytest.mark.parametrize("divergence", ["forward_kl", "jensen_shannon"])
def test_other_divergences_fall_too(tmp_path: Path, tokenizer: Tokenizer, divergence: str) -> None:
    loss = DistillationLoss(divergence=divergence)  # type: ignore[arg-type]
    make(tokenizer, tmp_path, replace(SPEC, rollouts=8, loss=loss, updates=2)).run()
    lines = read_json_lines(tmp_path / "metrics.jsonl")
    assert float(str(lines[-1]["divergence"])) < float(str(lines[0]["divergence"]))


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, tokenizer: Tokenizer) -> None:
    whole = make(tokenizer, tmp_path / "whole")
    whole.run()
    first = make(tokenizer, tmp_path / "parts")
    learn = first.collect_rollouts

    def interrupted(number: int) -> object:
        if number > 2:
            raise KeyboardInterrupt
        return learn(number)

    first.collect_rollouts = interrupted  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = make(tokenizer, tmp_path / "parts")
    second.run(resume=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    kept = ("step", "divergence", "length", "teacher_logprob")
    result = [
        [[line[name] for name in kept] for line in read_json_lines(tmp_path / run / "metrics.jsonl")]
        for run in ("whole", "parts")
    ]
    assert result[0] == result[1]


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(SpecError, match="a vocabulary of 400 tokens, the student one of 320"):
        make(tokenizer, tmp_path, teacher=build(replace(MODEL, vocab_size=400)))


def test_answers_end_where_the_shorter_context_does(tmp_path: Path, tokenizer: Tokenizer) -> None:
    trainer = make(tokenizer, tmp_path, teacher=build(replace(MODEL, max_position_embeddings=10)))
    assert all(rollout.tokens < 10 for rollout in trainer.collect_rollouts(1).rollouts)


def test_a_student_whose_sampler_computes_otherwise_stops(tmp_path: Path, tokenizer: Tokenizer) -> None:
    trainer = make(tokenizer, tmp_path)
    trainer.begin(Position())
    learn = trainer.collect_rollouts

    def shifted(number: int) -> object:
        rollout_batch = learn(number)
        return replace(
            rollout_batch, columns={"sampled": [[v - 0.5 for v in row] for row in rollout_batch.columns["sampled"]]}
        )

    trainer.collect_rollouts = shifted  # type: ignore[method-assign, assignment]
    with pytest.raises(TrainError, match="more than max_logprob_difference"):
        trainer.run()


def test_nothing_is_resampled_where_nothing_is_rewarded() -> None:
    with pytest.raises(SpecError, match=r"rollout\.resample"):
        replace(SPEC, rollout=replace(SPEC.rollout, resample=1))
