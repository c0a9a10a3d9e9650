from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fathom.errors import CheckpointError, DataError, TrainError
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.posttrain.grpo import PolicyTrainer
from fathom.posttrain.online import minibatches
from fathom.posttrain.rewards.base import Judgement, RewardInput
from fathom.posttrain.rollout import Rollout
from fathom.spec.posttrain import AdvantageSpec, KlPenalty, PolicyLoss
from fathom.spec.sampling import Completion, SamplingParams, StopChecker
from fathom.train.metrics import read_json_lines
from fathom.train.micro_batch import split
from fathom.train.optimizer import make_optimizer
from fathom.train.state import Position
from fathom.train.step import StepRunner
from tests.posttrain.conftest import MODEL, SPEC, MakePolicy, even_characters
from tests.recording_progress import RecordingProgress


def metrics(directory: Path) -> list[dict[str, object]]:
    return read_json_lines(directory / "metrics.jsonl")


def weights(model: Decoder) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def oracle_loss(model: Decoder, reference: Decoder, rollouts: Sequence[Rollout], totals: Sequence[float]) -> Tensor:
    """DeepSeekMath eq 3 and 4 at the first update, one answer at a time, all ratios being 1 in value."""
    losses = []
    for rollout in rollouts:
        group = torch.tensor([t for r, t in zip(rollouts, totals, strict=True) if r.group == rollout.group]).double()
        own = totals[rollouts.index(rollout)]
        spread = group.std(unbiased=False)
        advantage = (own - group.mean()) / (spread + 1e-6) if spread > 0 else torch.tensor(0.0)
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.answer_ids]])
        chosen = torch.arange(len(rollout.prompt_ids) - 1, ids.shape[1] - 1)
        mine, theirs = (
            m.logits(m(ids[:, :-1]).hidden_BTD[0]).log_softmax(-1)[chosen, ids[0, chosen + 1]]
            for m in (model, reference)
        )
        ratio = torch.exp(mine - mine.detach())
        away = torch.exp(theirs.detach() - mine) - (theirs.detach() - mine) - 1
        losses.append(-(ratio * advantage - 0.05 * away).mean())
    return torch.stack(losses).mean()


def test_a_step_has_the_gradient_of_the_paper(tmp_path: Path, make_policy: MakePolicy) -> None:
    model, reference = build(MODEL, seed=1), build(MODEL, seed=2)
    trainer = make_policy(tmp_path, model=model)
    trainer.begin(Position())
    assert trainer._reference is not None
    trainer._reference.model.load_state_dict(reference.state_dict())
    rollout_batch = trainer.collect_rollouts(1)
    totals = [judged.total for judged in even_characters([_answered(r) for r in rollout_batch.rollouts])]
    (batch,) = minibatches(rollout_batch, SPEC, 1)
    runner = StepRunner(
        model, make_optimizer(model, SPEC.optimizer), SPEC, objective=trainer.objective(), balanced=False
    )
    found = runner.accumulate(split(batch, 1, 50, runner.device), len(batch.lengths), 1, observe=False)
    mine = {name: parameter.grad for name, parameter in model.named_parameters()}
    other = build(MODEL, seed=1)
    expected = oracle_loss(other, reference, rollout_batch.rollouts, totals)
    expected.backward()  # type: ignore[no-untyped-call]
    assert found.objective == pytest.approx(expected.item(), abs=1e-5)
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("updates", [1, 3])
def test_answers_of_a_group_learn_behind_one_prompt_what_they_do_behind_their_own(
    tmp_path: Path, make_policy: MakePolicy, updates: int
) -> None:
    spec = replace(SPEC, updates=updates)
    trainer = make_policy(tmp_path, spec)
    trainer.begin(Position())
    rollout_batch = trainer.collect_rollouts(1)
    batches = minibatches(rollout_batch, spec, 1)
    rows = [rollout.tokens for rollout in rollout_batch.rollouts]
    assert sorted(length for batch in batches for length in batch.lengths) == sorted(rows)
    for batch in batches:
        found = []
        for laid in (batch, replace(batch, shared_prefix_lengths=None)):
            trainer.model.zero_grad()
            optimizer = make_optimizer(trainer.model, spec.optimizer)
            runner = StepRunner(trainer.model, optimizer, spec, objective=trainer.objective(), balanced=False)
            micros = list(split(laid, 1, 150, runner.device))
            gradients = runner.accumulate(micros, len(laid.lengths), 1, observe=False)
            read = sum(micro.tokens_BT.shape[1] for micro in micros)
            found.append((read, gradients, [parameter.grad for parameter in trainer.model.parameters()]))
        (once, shared, mine), (each, plain, theirs) = found
        assert each == len(batch.tokens_N)
        assert once < (0.75 if updates == 1 else 1) * each
        assert shared.objective == pytest.approx(plain.objective, abs=1e-6)
        assert shared.sums["entropy"] == pytest.approx(plain.sums["entropy"], rel=1e-5)
        for left, right in zip(mine, theirs, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


def _answered(rollout: Rollout) -> RewardInput:
    return RewardInput(prompt="", answer=rollout.text, problem=rollout.problem)


def test_a_policy_learns_what_is_rewarded_and_reports_it(tmp_path: Path, make_policy: MakePolicy) -> None:
    spec = replace(SPEC, rollouts=25, loss=PolicyLoss(), reference_every=None)
    trainer, progress = make_policy(tmp_path, spec), RecordingProgress()
    trainer._progress = progress
    trainer.run()
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 26))
    start, end = (sum(float(str(x["reward"])) for x in part) / 5 for part in (lines[:5], lines[-5:]))
    assert end > start + 0.15
    assert all(float(str(line["logprob_difference"])) < 1e-4 for line in lines)
    assert lines[0]["routing_equal"] == 1.0
    for name in ("length", "entropy", "accuracy", "zero_variance", "clipped_low", "rollout_tokens_per_second"):
        assert isinstance(lines[0][name], float), name
    assert [(update.done, update.total) for update in progress.updates] == [(n, 25) for n in range(1, 26)]
    assert progress.updates[-1].metrics["reward"] == f"{lines[-1]['reward']:.3g}"
    shown = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(shown) == 25
    assert len(shown[0]["answers"]) == 4


@pytest.mark.parametrize("updates", [1, 2])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, make_policy: MakePolicy, updates: int
) -> None:
    spec = replace(SPEC, rollouts=5, updates=updates)
    whole = make_policy(tmp_path / "whole", spec)
    whole.run()
    first = make_policy(tmp_path / "parts", spec)
    learn, stopping = first.collect_rollouts, 3

    def interrupted(number: int) -> object:
        if number > stopping:
            raise KeyboardInterrupt
        return learn(number)

    first.collect_rollouts = interrupted  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = make_policy(tmp_path / "parts", spec)
    with pytest.raises(CheckpointError, match="resume, or use a new directory"):
        second.run()
    second.run(resume=True)
    for name, tensor in weights(whole.model).items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    kept = ("step", "reward", "loss", "length", "kl")
    assert [[line[name] for name in kept] for line in metrics(tmp_path / "whole")] == [
        [line[name] for name in kept] for line in metrics(tmp_path / "parts")
    ]
    assert sorted(path.name for path in (tmp_path / "whole").glob("reference-*")) == [
        f"reference-{step:08d}.safetensors" for step in (0, 2, 4)
    ]


def test_answers_without_an_advantage_are_left_out_and_change_nothing(tmp_path: Path, make_policy: MakePolicy) -> None:
    def half(answers: Sequence[RewardInput]) -> list[Judgement]:
        judged = even_characters(answers)
        return [j if a.problem.task == "more" else replace(j, total=1.0) for a, j in zip(answers, judged, strict=True)]

    spec = replace(SPEC, loss=PolicyLoss(), reference_every=None)
    gradients = []
    for keep_all in (False, True):
        trainer = make_policy(tmp_path / str(keep_all), spec, judge=half)
        if keep_all:
            trainer._trainable = lambda judged: list(range(len(judged.rollouts)))  # type: ignore[method-assign]
        rollout_batch = trainer.collect_rollouts(1)
        assert len(rollout_batch.rollouts) == (12 if keep_all else 4)
        assert rollout_batch.values["zero_variance"] == pytest.approx(2 / 3)
        tasks = rollout_batch.values["tasks"]
        assert tasks["letters"]["reward"] == 1.0 > tasks["more"]["reward"]
        assert 8 * tasks["letters"]["length"] + 4 * tasks["more"]["length"] == pytest.approx(
            12 * rollout_batch.values["length"]
        )
        (batch,) = minibatches(rollout_batch, spec, 1)
        optimizer = make_optimizer(trainer.model, spec.optimizer)
        runner = StepRunner(trainer.model, optimizer, spec, objective=trainer.objective(), balanced=False)
        runner.accumulate(split(batch, 1, 64, runner.device), len(batch.lengths), 1, observe=False)
        gradients.append([parameter.grad for parameter in trainer.model.parameters()])
    for without, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(without, whole, rtol=1e-4, atol=1e-6)


def test_dull_groups_give_way_to_other_problems(tmp_path: Path, make_policy: MakePolicy) -> None:
    def first_two_dull(answers: Sequence[RewardInput]) -> list[Judgement]:
        judged = even_characters(answers)
        dull = {"letters-0", "more-0"}
        return [j if a.problem.id not in dull else replace(j, total=0.0) for a, j in zip(answers, judged, strict=True)]

    spec = replace(SPEC, rollout=replace(SPEC.rollout, resample=2))
    trainer = make_policy(tmp_path, spec, judge=first_two_dull)
    trainer.begin(Position())
    rollout_batch = trainer.collect_rollouts(1)
    assert rollout_batch.values["resampled_groups"] == 2
    assert rollout_batch.values["zero_variance"] == 0
    assert len({rollout.group for rollout in rollout_batch.rollouts}) == 3
    assert not {"letters-0", "more-0"} & {rollout.problem.id for rollout in rollout_batch.rollouts}


def test_nothing_is_learned_where_all_answers_are_alike(tmp_path: Path, make_policy: MakePolicy) -> None:
    def alike(answers: Sequence[RewardInput]) -> list[Judgement]:
        return [Judgement(total=1.0, parts={"one": 1.0}, correct=True, failures={"one": "timed out"}) for _ in answers]

    trainer = make_policy(tmp_path, replace(SPEC, loss=PolicyLoss(), reference_every=None), judge=alike)
    before = weights(trainer.model)
    trainer.run()
    for name, tensor in before.items():
        assert torch.equal(tensor, trainer.model.state_dict()[name]), name
    line = metrics(tmp_path)[0]
    assert line["zero_variance"] == 1.0
    assert line["updates"] == 0
    assert line["failures"] == {"one: timed out": 12}


class Liar:
    """The engine, but for the log-probabilities it tells."""

    def __init__(self, trainer: PolicyTrainer) -> None:
        self._engine = trainer.sampler

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        stop_checkers: Sequence[StopChecker | None] | None = None,
    ) -> list[Completion]:
        result = self._engine.sample(prompts, params, stop_checkers=stop_checkers)
        return [replace(each, logprobs=tuple(value - 0.25 for value in each.logprobs)) for each in result]

    def forget(self) -> None:
        self._engine.forget()


def test_a_sampler_that_computes_otherwise_stops_the_run(tmp_path: Path, make_policy: MakePolicy) -> None:
    trainer = make_policy(tmp_path)
    trainer.sampler = Liar(trainer)  # type: ignore[assignment]
    before = weights(trainer.model)
    with pytest.raises(TrainError, match=r"differ by up to 0\.25 .*more than max_logprob_difference 0\.001"):
        trainer.run()
    for name, tensor in before.items():
        assert torch.equal(tensor, trainer.model.state_dict()[name]), name


def test_several_updates_measure_ratios_against_the_policy_that_drew(tmp_path: Path, make_policy: MakePolicy) -> None:
    spec = replace(SPEC, rollouts=2, updates=3, epochs=2)
    make_policy(tmp_path, spec).run()
    for line in metrics(tmp_path):
        assert line["updates"] == 6
        assert float(str(line["old_kl"])) > 1e-6
        assert float(str(line["ratio_std"])) > 1e-3
    once = tmp_path / "once"
    make_policy(once, replace(SPEC, rollouts=2)).run()
    assert all(abs(float(str(line["old_kl"]))) < 1e-9 for line in metrics(once))


@pytest.mark.parametrize("place", ["reward", "advantage"])
def test_a_penalty_in_the_reward_needs_no_reference_in_the_loss(
    tmp_path: Path, make_policy: MakePolicy, place: str
) -> None:
    loss = PolicyLoss(kl=KlPenalty(estimator="k1", beta=0.5, place=place))  # type: ignore[arg-type]
    trainer = make_policy(tmp_path, replace(SPEC, loss=loss, rollouts=3))
    trainer.run()
    lines = metrics(tmp_path)
    assert all(math.isfinite(float(str(line["loss"]))) for line in lines)
    assert any(abs(float(str(line["kl"]))) > 1e-6 for line in lines[1:])


def test_rewards_that_are_no_numbers_are_refused_by_name(tmp_path: Path, make_policy: MakePolicy) -> None:
    def broken(answers: Sequence[RewardInput]) -> list[Judgement]:
        return [Judgement(total=math.nan, parts={}, correct=None) for _ in answers]

    with pytest.raises(DataError, match="rewards_B"):
        make_policy(tmp_path, judge=broken).run()


def test_advantages_may_leave_the_deviation_out(tmp_path: Path, make_policy: MakePolicy) -> None:
    loss = PolicyLoss(advantage=AdvantageSpec(scale="none"), normalize="token")
    trainer = make_policy(tmp_path, replace(SPEC, loss=loss, reference_every=None))
    rollout_batch = trainer.collect_rollouts(1)
    totals = [judged.total for judged in even_characters([_answered(r) for r in rollout_batch.rollouts])]
    by_group: dict[int, list[float]] = {}
    for rollout, total in zip(rollout_batch.rollouts, totals, strict=True):
        by_group.setdefault(rollout.group, []).append(total)
    for rollout, total, given in zip(rollout_batch.rollouts, totals, rollout_batch.columns["advantage"], strict=True):
        mean = sum(by_group[rollout.group]) / len(by_group[rollout.group])
        assert given == pytest.approx([total - mean] * len(rollout.answer_ids))
