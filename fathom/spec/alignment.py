"""The steps of a recipe after pretraining: conversations, judged answers, preferences, policies, tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from fathom.errors import SpecError
from fathom.spec import check
from fathom.spec.data_format import CONVERSATION_FORMATS, PREFERENCE_FORMATS, check_format
from fathom.spec.posttrain import DpoLoss, RewardModelLoss
from fathom.spec.problem import ProblemSource
from fathom.spec.rewards import AccuracyReward, RewardSpec, scores_steps
from fathom.spec.rollout import ChatPrompt, DistillSpec, PolicySpec, Prompting
from fathom.spec.train import BatchSpec, UpdateSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStep:
    """Begin with a model that is already there: a name of the catalogue, or a path as ``fathom.load`` takes it."""

    kind: ClassVar[str] = "open"
    name: str = "base"
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationFile:
    """A file or folder of conversations, ``repeat`` times an epoch; ``path`` is relative to the recipe.

    Its columns are recognised, unless ``format`` names one of ``CONVERSATION_FORMATS`` or ``fields`` says which columns
    of the file are those of a format.
    """

    kind: ClassVar[str] = "file"
    path: str
    repeat: int = 1
    format: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check.positive("repeat", self.repeat)
        object.__setattr__(self, "fields", check_format(CONVERSATION_FORMATS, self.format, self.fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswers:
    """The answers that an ``answers`` step kept."""

    kind: ClassVar[str] = "answers"
    step: str
    repeat: int = 1

    def __post_init__(self) -> None:
        check.positive("repeat", self.repeat)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkedProblems:
    """``count`` training problems with their worked solutions as reasoning and their answers as answers.

    ``reasoned`` is the share that show their reasoning; the others answer at once, as much of human writing does.
    """

    kind: ClassVar[str] = "worked"
    problems: ProblemSource
    count: int
    reasoned: float = 1.0
    seed: int = 1

    def __post_init__(self) -> None:
        check.positive("count", self.count)
        check.fraction("reasoned", self.reasoned)


ConversationSource = ConversationFile | KeptAnswers | WorkedProblems


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochsSpec(UpdateSpec):
    """Training for ``epochs`` epochs over a set of samples, ``batch.size`` x ``sequence_length`` tokens a step.

    ``packing`` masked keeps the samples of one sequence from attending to each other; joined concatenates them as in
    pretraining. ``learn`` names the roles whose turns count in the loss.
    """

    sequence_length: int
    epochs: float
    batch: BatchSpec
    packing: Literal["masked", "joined"] = "masked"
    learn: tuple[str, ...] = ("assistant",)

    def __post_init__(self) -> None:
        UpdateSpec.__post_init__(self)
        check.positive("sequence_length", self.sequence_length)
        check.positive("epochs", self.epochs)
        check.one_of("packing", self.packing, ("masked", "joined"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SftStep:
    """Supervised fine-tuning on conversations. ``prompt`` is how worked problems and kept answers are asked."""

    kind: ClassVar[str] = "sft"
    name: str = "sft"
    start: str | None = None
    train: EpochsSpec
    data: tuple[ConversationSource, ...]
    prompt: Prompting = field(default_factory=ChatPrompt)

    def __post_init__(self) -> None:
        _not_empty("data", self.data, "a source of conversations")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersStep:
    """Let a model answer ``count`` training problems ``samples`` times each, judge the answers, and keep good ones.

    Up to ``keep`` right answers of each problem, the shortest first, become conversations (rejection sampling, R1
    §2.3.3); all of them with their judgements are left for preferences. ``seed`` chooses other problems. An answer is
    not kept that was cut off, whose thinking has less than ``min_language`` of its words in the problem's language, or
    that holds a block of code where ``code_blocks`` is false.
    """

    kind: ClassVar[str] = "answers"
    name: str
    start: str | None = None
    problems: tuple[ProblemSource, ...]
    rewards: tuple[RewardSpec, ...] = (AccuracyReward(),)
    count: int
    samples: int = 4
    keep: int = 1
    min_language: float = 0.0
    code_blocks: bool = True
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    prompt: Prompting = field(default_factory=ChatPrompt)
    reward_timeout_seconds: float = 5.0
    seed: int = 1

    def __post_init__(self) -> None:
        _not_empty("problems", self.problems, "a source of problems")
        _not_empty("rewards", self.rewards, "a reward to judge by")
        for name in ("count", "samples", "keep", "max_tokens", "temperature", "top_p"):
            check.positive(name, getattr(self, name))
        check.seconds("reward_timeout_seconds", self.reward_timeout_seconds)
        check.fraction("top_p", self.top_p)
        check.fraction("min_language", self.min_language)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoStep:
    """Reinforcement learning with verifiable or modelled rewards (DeepSeekMath §4, R1 §2.2).

    Problems are drawn from all sources in turn; a reward may take ``reward_timeout_seconds`` an answer. A reward that
    scores steps counts as their mean under outcome supervision; process supervision needs one with a weight above 0.
    """

    kind: ClassVar[str] = "grpo"
    name: str = "grpo"
    start: str | None = None
    policy: PolicySpec
    problems: tuple[ProblemSource, ...]
    rewards: tuple[RewardSpec, ...]
    reward_timeout_seconds: float = 5.0

    def __post_init__(self) -> None:
        _not_empty("problems", self.problems, "a source of problems")
        _not_empty("rewards", self.rewards, "a reward to learn from")
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
    """A file or folder of pairs of a better and a worse answer; ``path`` is relative to the recipe.

    Its columns are recognised, unless ``format`` names one of ``PREFERENCE_FORMATS`` or ``fields`` says which columns
    of the file are those of a format.
    """

    kind: ClassVar[str] = "file"
    path: str
    format: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", check_format(PREFERENCE_FORMATS, self.format, self.fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPairs:
    """Pairs of a better and a worse answer to one problem that an ``answers`` step left, up to ``per_problem``.

    ``share`` of the problems, chosen by hash, are taken: 0.1 replays a tenth of an earlier step's (DeepSeekMath
    §4.1.4).
    """

    kind: ClassVar[str] = "answers"
    step: str
    per_problem: int = 1
    share: float = 1.0

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
    start: str | None = None
    train: EpochsSpec
    loss: DpoLoss = field(default_factory=DpoLoss)
    pairs: tuple[PairSource, ...]

    def __post_init__(self) -> None:
        _not_empty("pairs", self.pairs, "a source of pairs")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelStep:
    """A reward model from an SFT checkpoint, from pairs or from single judged answers (V2 §4.2, DeepSeekMath §4.1).

    With ``reasoning_tokens`` every answer is scored after reasoning of up to as many tokens, which the model it starts
    from writes about it (V3 §5.2.1).
    """

    kind: ClassVar[str] = "reward_model"
    name: str = "reward-model"
    start: str | None = None
    train: EpochsSpec
    loss: RewardModelLoss
    pairs: tuple[PairSource, ...]
    reasoning_tokens: int = 0

    def __post_init__(self) -> None:
        _not_empty("pairs", self.pairs, "a source of pairs")
        check.not_negative("reasoning_tokens", self.reasoning_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillStep:
    """On-policy distillation from ``teacher``, a step of the recipe or a model as ``fathom.load`` opens it."""

    kind: ClassVar[str] = "distill"
    name: str = "distill"
    start: str | None = None
    teacher: str
    policy: DistillSpec
    problems: tuple[ProblemSource, ...]

    def __post_init__(self) -> None:
        _not_empty("problems", self.problems, "a source of problems")


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksStep:
    """Accuracy on held-out problems, of every step of ``stages`` or of the model before.

    ``count`` problems of each source get ``samples`` answers: one greedy answer at temperature 0, or more for pass@k
    and majority@k. A task is one source, by its name.
    """

    kind: ClassVar[str] = "tasks"
    name: str = "tasks"
    stages: tuple[str, ...] = ()
    problems: tuple[ProblemSource, ...]
    count: int = 200
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int
    prompt: Prompting = field(default_factory=ChatPrompt)
    rewards: tuple[RewardSpec, ...] = (AccuracyReward(),)
    reward_timeout_seconds: float = 5.0

    def __post_init__(self) -> None:
        _not_empty("problems", self.problems, "a source of problems")
        for name in ("count", "samples", "max_tokens"):
            check.positive(name, getattr(self, name))
        check.seconds("reward_timeout_seconds", self.reward_timeout_seconds)
        check.not_negative("temperature", self.temperature)
        if self.samples > 1 and self.temperature == 0:
            raise SpecError("samples", f"{self.samples} answers at temperature 0 are all alike", "raise temperature")
        check.distinct_names("problems", (source.name for source in self.problems), what="source")


def _not_empty(field_name: str, given: Sequence[object], what: str) -> None:
    if not given:
        raise SpecError(field_name, "is empty", f"give at least {what}")
