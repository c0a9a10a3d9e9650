"""Rollouts and updates compute alike in every precision, and a sampler that does not is found out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom.engine.engine import Engine
from fathom.errors import SpecError, TrainError
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.pipeline.rollouts import rollout_engine
from fathom.posttrain.grpo import PolicyTrainer
from fathom.posttrain.logprob_monitor import LogprobDifference, LogprobMonitor
from fathom.posttrain.online import OnlineTrainer
from fathom.posttrain.rollout import Rollout
from fathom.posttrain.scoring import rollout_logprobs
from fathom.products import ProductChoice
from fathom.spec.engine import EngineSpec
from fathom.spec.problem import Problem
from fathom.spec.rollout import DistillSpec, OnlineSpec, PolicySpec
from fathom.spec.sampling import Completion, SamplingParams, StopChecker
from fathom.spec.train import UpdateSpec
from fathom.tokenizer import Tokenizer
from fathom.train.metrics import read_json_lines
from fathom.train.step import resolve_precision
from tests.posttrain import test_distill
from tests.posttrain.conftest import CPU, DENSE, MODEL, SPEC, new_policy

LOW = {"precision": "bfloat16", "max_logprob_difference": None, "rollouts": 2}
REPORTED = [f"logprob_difference{suffix}" for suffix in ("_p50", "_p99", "")]


def sharp(spec: object = MODEL) -> Decoder:
    """A model whose logits reach 30, as those of trained models do; bfloat16 rounds them to 1/8."""
    model = build(spec, seed=1)  # type: ignore[arg-type]
    with torch.no_grad():
        model.norm.weight.mul_(6.0)
    return model


def policy(tokenizer: Tokenizer, directory: Path, spec: PolicySpec, engine: EngineSpec | None) -> PolicyTrainer:
    return new_policy(tokenizer, directory, spec, model=sharp(), engine=engine)


def distillation(tokenizer: Tokenizer, directory: Path, spec: DistillSpec, engine: EngineSpec | None) -> OnlineTrainer:
    trainer = test_distill.make(tokenizer, directory, spec)
    with torch.no_grad():
        trainer.model.norm.weight.mul_(6.0)
    trainer.sampler = Engine(trainer.model, eos_ids=[tokenizer.eos_id], spec=engine or rollout_engine(spec, CPU))
    return trainer


Make = Callable[..., OnlineTrainer]
KINDS = [pytest.param(policy, SPEC, id="grpo"), pytest.param(distillation, test_distill.SPEC, id="distill")]


@pytest.mark.parametrize(("make", "spec"), KINDS)
def test_rollouts_and_updates_agree_in_bfloat16_and_say_how_far(
    tmp_path: Path, tokenizer: Tokenizer, make: Make, spec: OnlineSpec
) -> None:
    make(tokenizer, tmp_path / "alike", replace(spec, **LOW), None).run()
    lines = read_json_lines(tmp_path / "alike" / "metrics.jsonl")
    assert len(lines) == 2
    for line in lines:
        values = [float(line[key]) for key in REPORTED]
        assert values == sorted(values)
        assert 0 < float(line["logprob_difference_mean"]) < values[-1]
    unlike = make(tokenizer, tmp_path / "unlike", replace(spec, **LOW | {"max_logprob_difference": 0.05}), EngineSpec())
    with pytest.raises(TrainError, match=r"rollout 1: .*max_logprob_difference 0\.05"):
        unlike.run()


@pytest.mark.parametrize("model", [sharp(), sharp(DENSE)], ids=["moe", "dense"])
def test_a_prompt_is_scored_as_the_trainer_scores_it_where_both_compute_in_one_precision(model: Decoder) -> None:
    tokens = torch.randint(0, 320, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    answer = Rollout(
        problem=Problem(id="p", task="t", question="?", answer="!"),
        group=0,
        prompt_ids=(tokens[0],),
        answer_ids=tuple(tokens[1:]),
        logprobs=(),
        text="",
        finished=True,
    )
    params, apart = SamplingParams(max_tokens=1, prompt_logprobs=0), {}
    for precision in ("float32", "bfloat16"):
        spec = replace(SPEC, precision=precision)  # type: ignore[arg-type]
        (trained,) = rollout_logprobs(model, [answer], spec, temperature=1.0, micro_batch_tokens=64)
        for engine in (rollout_engine(spec, CPU), EngineSpec()):
            (found,) = Engine(model, spec=engine).sample([tokens], params)
            scored = [each.logprob for each in found.prompt if each is not None]
            apart[precision, engine.compute_dtype] = (torch.tensor(scored) - torch.tensor(trained)).abs().mean().item()
    assert apart["float32", "auto"] < 1e-4
    assert apart["bfloat16", "auto"] > 0.01
    assert apart["bfloat16", "bfloat16"] < 0.1 * apart["bfloat16", "auto"]


def test_a_bound_that_bfloat16_cannot_meet_stops_the_run_and_raising_it_helps(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    tight = replace(SPEC, **LOW | {"max_logprob_difference": 1e-3})
    with pytest.raises(TrainError, match="or raise max_logprob_difference") as stopped:
        policy(tokenizer, tmp_path, tight, None).run()
    found = re.search(r"differ by up to ([\d.e-]+) \(99th percentile ([\d.e-]+)\)", str(stopped.value))
    assert found is not None
    needed = 1.1 * max(float(found[1]), 10 * float(found[2]))
    policy(tokenizer, tmp_path, replace(tight, rollouts=1, max_logprob_difference=needed), None).run(resume=True)


class Liar:
    """The engine, but for the log-probabilities it reports."""

    def __init__(self, engine: object, change: Callable[[int, float], float]) -> None:
        self._engine, self._change = engine, change

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        stop_checkers: Sequence[StopChecker | None] | None = None,
    ) -> list[Completion]:
        drawn = self._engine.sample(prompts, params, stop_checkers=stop_checkers)  # type: ignore[attr-defined]
        return [
            replace(
                each, logprobs=tuple(self._change(index + place, value) for place, value in enumerate(each.logprobs))
            )
            for index, each in enumerate(drawn)
        ]

    def forget(self) -> None:
        self._engine.forget()  # type: ignore[attr-defined]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda place, value: value - 1.0, id="all-tokens"),
        pytest.param(lambda place, value: value - 9.0 * (place == 0), id="one-token"),
        pytest.param(lambda place, value: 0.5 * value, id="another-temperature"),
        pytest.param(lambda place, value: float("nan"), id="no-number"),
    ],
)
def test_a_sampler_that_computes_otherwise_is_stopped_in_every_precision(
    tmp_path: Path, tokenizer: Tokenizer, precision: str, change: Callable[[int, float], float]
) -> None:
    spec = replace(SPEC, precision=precision, max_logprob_difference=None)  # type: ignore[arg-type]
    trainer = policy(tokenizer, tmp_path, spec, None)
    trainer.sampler = Liar(trainer.sampler, change)  # type: ignore[assignment]
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(TrainError, match="more than max_logprob_difference"):
        trainer.run()
    assert all(torch.equal(tensor, trainer.model.state_dict()[name]) for name, tensor in before.items())


def test_an_engine_at_bfloat16_keeps_its_cache_in_it_and_its_weights_as_they_are() -> None:
    model = build(DENSE, seed=1)
    plain, low = Engine(model), Engine(model, spec=EngineSpec(compute_dtype="bfloat16"))
    assert low.pool.bytes_per_token == plain.pool.bytes_per_token / 2
    params = SamplingParams(max_tokens=8, temperature=0)
    (mine,), (theirs,) = low.sample([[1, 2, 3]], params), plain.sample([[1, 2, 3]], params)
    assert 1e-5 < abs(mine.logprobs[0] - theirs.logprobs[0]) < 0.1
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


def test_an_engine_refuses_a_dtype_it_does_not_have() -> None:
    with pytest.raises(SpecError, match="compute_dtype"):
        EngineSpec(compute_dtype="float16")  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300), st.floats(1e-3, 100))
def test_a_difference_is_summarised_as_sorting_says(values: list[float], bound: float) -> None:
    found = LogprobDifference.of(torch.tensor(values, dtype=torch.float64))
    ordered = sorted(values)
    assert found.maximum == ordered[-1]
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert sum(value < found.p99 for value in ordered) <= 0.99 * len(values)
    assert sum(value <= found.p99 for value in ordered) >= 0.99 * len(values)
    assert found.exceeds(bound) == (ordered[-1] > bound or found.p99 > 0.1 * bound)


def test_a_monitor_collects_over_micro_batches_until_it_is_reset() -> None:
    monitor = LogprobMonitor()
    assert monitor.difference == LogprobDifference()
    assert not monitor.difference.exceeds(1e-9)
    monitor.observe(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -2.0]))
    monitor.observe(torch.tensor([-3.0]), torch.tensor([-1.0]))
    assert monitor.difference.maximum == 2.0
    assert monitor.difference.p50 == 0.5
    monitor.reset()
    assert monitor.difference.maximum == 0.0


def test_auto_is_bfloat16_on_a_cpu_only_where_that_is_fast_and_never_where_answers_are_sampled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    online = replace(SPEC, precision="auto")
    train = UpdateSpec(optimizer=online.optimizer)
    for fast in (False, True):
        monkeypatch.setattr("fathom.train.step.product_choice", lambda fast=fast: ProductChoice(bfloat16=fast))
        found = [resolve_precision(spec, device) for spec in (train, online) for device in (cpu, gpu)]
        half = torch.bfloat16
        assert found == [half if fast else torch.float32, half, torch.float32, half]
        for name in ("float32", "bfloat16"):
            explicit = replace(train, precision=name)
            assert {resolve_precision(explicit, device) for device in (cpu, gpu)} == {getattr(torch, name)}
