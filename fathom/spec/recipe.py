"""A recipe: a model, its data, and named steps from raw text to a report."""

from __future__ import annotations

from dataclasses import dataclass, field

from fathom.errors import SpecError
from fathom.spec import check
from fathom.spec.alignment import DistillStep, DpoStep, GrpoStep, OpenStep, RewardModelStep, SftStep
from fathom.spec.answering import AnswersStep, RepliesStep, TasksStep
from fathom.spec.model import ModelSpec
from fathom.spec.parallel import ParallelSpec
from fathom.spec.step_results import check_results
from fathom.spec.steps import (
    CaptionsStep,
    CorpusStep,
    EvaluateStep,
    ImageText,
    NeedleStep,
    PicturesStep,
    ReportStep,
    SampleStep,
    ShardsStep,
    TokenizerStep,
    TrainStep,
)

__all__ = [
    "AnswersStep",
    "CaptionsStep",
    "CorpusStep",
    "DistillStep",
    "DpoStep",
    "EvaluateStep",
    "GrpoStep",
    "ImageText",
    "LearningStep",
    "ModelStep",
    "NeedleStep",
    "OpenStep",
    "PicturesStep",
    "Recipe",
    "RepliesStep",
    "ReportStep",
    "RewardModelStep",
    "SampleStep",
    "SftStep",
    "ShardsStep",
    "StartingStep",
    "Step",
    "TasksStep",
    "TokenizerStep",
    "TrainStep",
]

Step = (
    CorpusStep
    | TokenizerStep
    | ShardsStep
    | PicturesStep
    | TrainStep
    | EvaluateStep
    | NeedleStep
    | CaptionsStep
    | SampleStep
    | ReportStep
    | OpenStep
    | SftStep
    | AnswersStep
    | GrpoStep
    | DpoStep
    | RewardModelStep
    | DistillStep
    | TasksStep
    | RepliesStep
)

ModelStep = TrainStep | OpenStep | SftStep | GrpoStep | DpoStep | DistillStep
"""A step that leaves a language model."""
LearningStep = TrainStep | SftStep | GrpoStep | DpoStep | DistillStep | RewardModelStep
"""A step that changes weights: it writes checkpoints and resumes from the latest one."""
StartingStep = SftStep | AnswersStep | GrpoStep | DpoStep | DistillStep | RewardModelStep
"""A step that begins with the model of ``start``, or of the last step before it that leaves one."""

MAX_STEPS = 256
TRACKERS = ("tensorboard", "wandb", "trackio")
"""Viewers that learning steps can write their metrics to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Steps over one model, run in order; each leaves its result in the run directory and is never run twice."""

    name: str
    """Name of the recipe: the directory below runs/ where --out names no other.

    Example: "my-model"
    """
    model: ModelSpec | None = None
    """The model that train steps build where they have none of their own; recipes that begin with an open step need
    none. `preset = "NAME"` takes a published model, and fields beside it change it.
    """
    steps: tuple[Step, ...]
    """What is done, in order: each [[steps]] table has a kind, and a name of its own."""
    parallel: ParallelSpec = field(default_factory=ParallelSpec)
    """How the processes that torchrun starts divide the work of train, sft, dpo and reward_model steps; the other
    steps are done by one of them.
    """
    track: tuple[str, ...] = ()
    """Where the metrics of learning steps go beside metrics.jsonl: any of tensorboard, wandb and trackio; left out,
    tensorboard where it is installed.

    Example: ["tensorboard", "wandb"]
    """

    def __post_init__(self) -> None:
        check.plain_name("name", self.name, dots=True)
        for index, tracker in enumerate(self.track):
            check.one_of(f"track[{index}]", tracker, TRACKERS)
        if not self.steps:
            raise SpecError("steps", "the recipe has no steps", "add a [[steps]] table", alone=True)
        if len(self.steps) > MAX_STEPS:
            raise SpecError(
                "steps", f"{len(self.steps)} are more than {MAX_STEPS}", "make several recipes of them", alone=True
            )
        check.distinct_names("steps", (step.name for step in self.steps), what="step")
        check_results(self.steps)
        self._check_stages()

    @property
    def trained_model(self) -> ModelSpec:
        """The model that train steps build.

        Raises:
            SpecError: the recipe describes none.
        """
        if self.model is None:
            raise SpecError("model", "is missing", "describe the model to train in [model], or name a preset")
        return self.model

    def _check_stages(self) -> None:
        model, context, vocabulary = self.model, 0, 0
        known = True  # until a step continues from a model that only the run knows
        for index, step in enumerate(self.steps):
            if isinstance(step, TokenizerStep):
                vocabulary = step.vocab_size
                if model is not None:
                    _check_vocabulary(f"steps[{index}].vocab_size", vocabulary, model)
            if isinstance(step, TrainStep):
                if step.model is not None:
                    model, context, known = step.model, step.model.max_position_embeddings, True
                    _check_vocabulary(f"steps[{index}].model.vocab_size", vocabulary, model)
                elif step.start is not None:
                    context, known = 0, False
                context = step.max_position_embeddings or context
                if known and not context:
                    context = self.trained_model.max_position_embeddings
                if context and step.train.sequence_length > context:
                    raise SpecError(
                        f"steps[{index}].train.sequence_length",
                        f"{step.train.sequence_length} exceeds the context of {context}",
                        "shorten it or set max_position_embeddings",
                    )


def _check_vocabulary(where: str, vocabulary: int, model: ModelSpec) -> None:
    if vocabulary > model.vocab_size:
        problem = f"the tokenizer's {vocabulary} exceeds model.vocab_size {model.vocab_size}"
        raise SpecError(where, problem, "make them equal")
