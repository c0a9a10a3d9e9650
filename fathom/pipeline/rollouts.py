"""What steps share whose models learn from their own answers: problems, an engine of the right size, progress."""

from __future__ import annotations

from fathom.data.problems import open_problems
from fathom.pipeline.context import StepContext
from fathom.posttrain.online import IterationReport
from fathom.posttrain.problem_stream import ProblemStream
from fathom.spec.engine import EngineSpec
from fathom.spec.problem import ProblemSource
from fathom.spec.rollout import OnlineSpec

LARGEST_BATCH = 256


def rollout_engine(policy: OnlineSpec) -> EngineSpec:
    """Lay out an engine that draws a whole rollout at once, or as much of it as is worth batching.

    It records which experts tokens go to, so that the update's routing can be compared with the rollout's.
    """
    answers = policy.rollout.questions * policy.rollout.group_size
    return EngineSpec(max_batch=min(answers, LARGEST_BATCH), record_routing=True)


def questions(context: StepContext, sources: tuple[ProblemSource, ...], seed: int) -> ProblemStream:
    """Open a step's problems."""
    base = context.plan.base
    return ProblemStream([open_problems(each, cache_dir=context.cache_dir, base=base) for each in sources], seed=seed)


class RolloutProgress:
    """Passes the news of rollouts on to whoever watches the run."""

    def __init__(self, context: StepContext) -> None:
        self._progress = context.progress

    def __call__(self, report: IterationReport) -> None:
        """Show a rollout."""
        facts = {"rollout": f"{report.number}/{report.total}"}
        for name, label in (("reward", "reward"), ("accuracy", "right"), ("loss", "loss"), ("length", "tokens each")):
            if name in report.values:
                facts[label] = f"{report.values[name]:.3g}"
        self._progress.update(report.number, report.total, "rollouts", facts)
