"""The steps of a recipe after pretraining: conversations, judged answers, preferences, policies, tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from fathom.errors import SpecError
from fathom.spec import check
from fathom.spec.data_format import CONVERSATION_FORMATS, PREFERENCE_FORMATS, check_format
from fathom.spec.epochs import EpochBatch, ValidationSpec
from fathom.spec.posttrain import DpoLoss, RewardModelLoss
from fathom.spec.problem import ProblemSource
from fathom.spec.rewards import RewardSpec, scores_steps
from fathom.spec.rollout import ChatPrompt, DistillSpec, PolicySpec, Prompting
from fathom.spec.train import UpdateSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStep:
    """Begin with a model that is already there."""

    kind: ClassVar[str] = "open"
    name: str = "base"
    """Name of the step, which other steps start from."""
    model: str
    """A name of the catalogue, a run or a path relative to the recipe, or owner/name on the hub, as ``fathom.load``
    takes it.

    Example: "smollm2-135m"
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationFile:
    """A file or folder of conversations, whose columns are recognised."""

    kind: ClassVar[str] = "file"
    path: str
    """Where it is, relative to the recipe.

    Example: "conversations.jsonl"
    """
    repeat: int = 1
    """How often each conversation is seen in an epoch.

    Unit: times
    """
    format: str | None = None
    """The layout of its rows, where it is not recognised: messages, sharegpt, alpaca, prompt_completion,
    function_calls, message_tree, question_answer, solution or chosen.

    Example: "messages"
    """
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Which columns of the file are those of the format.

    Example: { messages = "chat" }
    """

    def __post_init__(self) -> None:
        check.positive("repeat", self.repeat)
        object.__setattr__(self, "fields", check_format(CONVERSATION_FORMATS, self.format, self.fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswers:
    """The answers that an ``answers`` step kept."""

    kind: ClassVar[str] = "answers"
    step: str
    """The answers step.

    Example: "samples"
    """
    repeat: int = 1
    """How often each answer is seen in an epoch.

    Unit: times
    """

    def __post_init__(self) -> None:
        check.positive("repeat", self.repeat)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkedProblems:
    """Training problems with their worked solutions as reasoning and their answers as answers."""

    kind: ClassVar[str] = "worked"
    problems: ProblemSource
    """Where the problems come from: a name of [problems], or a source."""
    count: int
    """Problems that are taken.

    Unit: problems
    Example: 1000
    """
    reasoned: float = 1.0
    """Share that show their reasoning; the others answer at once.

    Unit: fraction
    """
    seed: int = 1
    """Chooses other problems."""

    def __post_init__(self) -> None:
        check.positive("count", self.count)
        check.fraction("reasoned", self.reasoned)


ConversationSource = ConversationFile | KeptAnswers | WorkedProblems


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochsSpec(UpdateSpec):
    """Training for some epochs over a set of conversations or pairs, a batch of them a step."""

    epochs: float
    """How often every conversation or pair is seen; parts of an epoch count.

    Unit: epochs
    Paper: 2 (V2 §4, V3 §5.1), 8 (MoE §6.1)
    Example: 2.0
    """
    batch: EpochBatch = field(default_factory=EpochBatch)
    """What one optimizer step learns from: conversations, pairs, or packed rows (size).

    Example: { conversations = 8 }
    """
    sequence_length: int | None = None
    """The most tokens that an example may have; longer ones are left out and reported. Left out, as many as the longest
    one has, within the model's context and what the machine's memory allows.

    Unit: tokens
    Paper: 4096 (MoE §6.1, SFT)
    Example: 256
    """
    packing: Literal["masked", "joined"] = "masked"
    """masked keeps the samples of one sequence from attending to each other; joined concatenates them as in
    pretraining, and needs a batch in rows.

    Paper: masked (V3 §5.1)
    """
    learn: tuple[str, ...] = ("assistant",)
    """Roles whose turns count in the loss."""
    validation: ValidationSpec = field(default_factory=ValidationSpec)
    """What is held out of the data, and measured before, during and after training: every evaluate_every_steps, or ten
    times.

    Example: { fraction = 0.1 }
    """
    patience: int | None = None
    """Training stops after so many evaluations in a row without a lower validation loss, and its result is the model
    of the lowest one; left out, it never stops early and its result is the last model.

    Unit: evaluations
    Example: 3
    """

    def __post_init__(self) -> None:
        UpdateSpec.__post_init__(self)
        check.positive("epochs", self.epochs)
        check.one_of("packing", self.packing, ("masked", "joined"))
        if self.sequence_length is not None:
            check.positive("sequence_length", self.sequence_length)
        if self.patience is not None:
            check.positive("patience", self.patience)
            if self.validation.fraction == 0:
                raise SpecError("patience", "needs a validation loss", "hold out some examples, or leave it out")
        if self.packing == "joined" and self.batch.size is None:
            raise SpecError("packing", "joined samples have no rows of their own", "give batch.size, or use masked")


@dataclass(frozen=True, slots=True, kw_only=True)
class SftStep:
    """Supervised fine-tuning on conversations."""

    kind: ClassVar[str] = "sft"
    name: str = "sft"
    """Name of the step and of its folder in the run."""
    start: str | None = None
    """The step whose model it begins with; left out, the last one before that leaves a model.

    Example: "base"
    """
    train: EpochsSpec
    """How long, how fast and how much at once the model learns."""
    data: tuple[ConversationSource, ...]
    """Sources of conversations: files, problems with worked solutions, or answers that a step kept."""
    prompt: Prompting = field(default_factory=ChatPrompt)
    """How worked problems and kept answers are asked."""

    def __post_init__(self) -> None:
        check.not_empty("data", self.data, "a source of conversations")
        self.train.batch.check_unit("conversations", "pairs")


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoStep:
    """Reinforcement learning with verifiable or modelled rewards (DeepSeekMath §4, R1 §2.2).

    Problems are drawn from all sources in turn. A reward that scores steps counts as their mean under outcome
    supervision; process supervision needs one with a weight above 0.
    """

    kind: ClassVar[str] = "grpo"
    name: str = "grpo"
    """Name of the step and of its folder in the run."""
    start: str | None = None
    """The step whose model it begins with; left out, the last one before that leaves a model.

    Example: "sft"
    """
    policy: PolicySpec
    """How answers are sampled and learned from."""
    problems: tuple[ProblemSource, ...]
    """Where the problems come from: names of [problems], or sources."""
    rewards: tuple[RewardSpec, ...]
    """What answers are rewarded for: parts of a weighted sum."""
    reward_timeout_seconds: float = 5.0
    """Time that a reward may take for one answer.

    Unit: seconds
    """

    def __post_init__(self) -> None:
        check.not_empty("problems", self.problems, "a source of problems")
        check.not_empty("rewards", self.rewards, "a reward to learn from")
        check.seconds("reward_timeout_seconds", self.reward_timeout_seconds)
        check.distinct_names("rewards", (reward.name for reward in self.rewards), what="reward")
        supervision = self.policy.loss.advantage.supervision
        if supervision == "process" and not any(scores_steps(r) and r.weight for r in self.rewards):
            raise SpecError(
                "policy.loss.advantage.supervision",
                "process needs a reward that scores steps, and none of rewards does",
                'add {kind = "steps"} to rewards, or set steps = true on a model or function; or use outcome',
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFile:
    """A file or folder of pairs of a better and a worse answer, whose columns are recognised."""

    kind: ClassVar[str] = "file"
    path: str
    """Where it is, relative to the recipe.

    Example: "preferences.jsonl"
    """
    format: str | None = None
    """The layout of its rows, where it is not recognised: preference, implicit_prompt, messages, alpaca, input,
    openai, ultrafeedback or kto.

    Example: "preference"
    """
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Which columns of the file are those of the format.

    Example: { chosen = "better", rejected = "worse" }
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", check_format(PREFERENCE_FORMATS, self.format, self.fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPairs:
    """Pairs of a better and a worse answer to one problem that an ``answers`` step left."""

    kind: ClassVar[str] = "answers"
    step: str
    """The answers step.

    Example: "samples"
    """
    per_problem: int = 1
    """Pairs of each problem at most.

    Unit: pairs
    """
    share: float = 1.0
    """Share of the problems, chosen by hash, that are taken: 0.1 replays a tenth of an earlier step's.

    Unit: fraction
    Paper: 0.1 (DeepSeekMath §4.1.4)
    """

    def __post_init__(self) -> None:
        check.positive("per_problem", self.per_problem)
        check.positive("share", self.share)
        check.fraction("share", self.share)


PairSource = PairFile | JudgedPairs


@dataclass(frozen=True, slots=True, kw_only=True)
class DpoStep:
    """Direct preference optimization against the model it starts from (DeepSeek LLM Chat)."""

    kind: ClassVar[str] = "dpo"
    name: str = "dpo"
    """Name of the step and of its folder in the run."""
    start: str | None = None
    """The step whose model it begins with; left out, the last one before that leaves a model.

    Example: "sft"
    """
    train: EpochsSpec
    """How long, how fast and how much at once the model learns."""
    loss: DpoLoss = field(default_factory=DpoLoss)
    """How much better the better answer should become."""
    pairs: tuple[PairSource, ...]
    """Sources of pairs of a better and a worse answer."""

    def __post_init__(self) -> None:
        check.not_empty("pairs", self.pairs, "a source of pairs")
        self.train.batch.check_unit("pairs", "conversations")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelStep:
    """A reward model from an SFT checkpoint and judged answers (V2 §4.2, DeepSeekMath §4.1)."""

    kind: ClassVar[str] = "reward_model"
    name: str = "reward-model"
    """Name of the step and of its folder in the run."""
    start: str | None = None
    """The step whose model it begins with; left out, the last one before that leaves a model.

    Example: "sft"
    """
    train: EpochsSpec
    """How long, how fast and how much at once the model learns."""
    loss: RewardModelLoss
    """From pairs of answers (pairwise), or from single answers with a score (pointwise)."""
    pairs: tuple[PairSource, ...]
    """Sources of pairs of a better and a worse answer."""
    reasoning_tokens: int = 0
    """Every answer is scored after reasoning of at most so many tokens, which the model it starts from writes about
    it (V3 §5.2.1); 0 scores at once.

    Unit: tokens
    """

    def __post_init__(self) -> None:
        check.not_empty("pairs", self.pairs, "a source of pairs")
        self.train.batch.check_unit("pairs", "conversations")
        check.not_negative("reasoning_tokens", self.reasoning_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillStep:
    """On-policy distillation from a teacher: another step of the recipe, or a model."""

    kind: ClassVar[str] = "distill"
    name: str = "distill"
    """Name of the step and of its folder in the run."""
    start: str | None = None
    """The step whose model is the student; left out, the last one before that leaves a model.

    Example: "student"
    """
    teacher: str
    """A step of the recipe, or a model as ``fathom.load`` opens it.

    Example: "grpo"
    """
    policy: DistillSpec
    """How answers are sampled and learned from."""
    problems: tuple[ProblemSource, ...]
    """Where the problems come from: names of [problems], or sources."""

    def __post_init__(self) -> None:
        check.not_empty("problems", self.problems, "a source of problems")
