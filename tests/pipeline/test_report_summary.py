"""A report begins with what was trained and what it can do now; nothing is claimed that was not measured."""

from __future__ import annotations

from fathom.pipeline.report.data import Curve, Needle, RunData, StepCurves, TaskScore
from fathom.pipeline.report.page import render_page
from fathom.pipeline.report.summary import summary

FACTS = {"parameters": 2_600_000, "active_parameters": 900_000, "tokens": 1_240_000}


def score(accuracy: float) -> TaskScore:
    return TaskScore(accuracy=accuracy, low=0.0, high=1.0, n=100, tokens=20.0, finished=1.0)


def test_a_whole_run_is_summed_up() -> None:
    data = RunData(
        name="run",
        facts=FACTS,
        stages=[("pretrain", 60.0)],
        bits_per_byte={"drama": {"start": 4.0, "end": 2.5}, "python": {"start": 4.4, "end": 1.75}},
        needle=Needle(lengths=[256, 1024], depths=[0.0, 1.0], accuracy=[[1, 1], [0.5, 1]], gain_bits=[[1, 1], [1, 1]]),
        sft_loss_curves=[Curve(name="sft", x=[1.0], y=[1.0])],
        online=[StepCurves(name="grpo", panels={"reward": [Curve(name="mean", x=[1.0, 2.0], y=[0.1, 0.2])]})],
        tasks={"sums": {"sft": score(0.5), "grpo": score(0.7)}, "legs": {"grpo": score(0.93)}},
    )
    assert summary(data) == (
        "Trained from raw text: a model of 2.60M parameters (900K active per token) on 1.24M tokens of text, "
        "then by sft and grpo.",
        "On held-out text it needs 1.75 (python) to 2.50 (drama) bits per byte, where random weights need 4.20; "
        "it finds a needle in 1,024 tokens in 75% of trials.",
        "It answers held-out problems right after grpo: 70% of sums and 93% of legs.",
    )
    page = render_page(data)
    assert page.index("1.24M tokens of text") < page.index("<h2>")


def test_nothing_is_claimed_that_was_not_measured() -> None:
    data = RunData(name="run", facts={"parameters": 10, "active_parameters": 10}, stages=[], origin="smollm2-135m")
    assert summary(data) == (
        "Trained from smollm2-135m: a model of 10 parameters.",
        "How well it models held-out text was not measured.",
        "It continues texts; answering was not measured.",
    )
