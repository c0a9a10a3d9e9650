"""Rollouts and the online training on them: GRPO and on-policy distillation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fathom.errors import SpecError
from fathom.spec import check
from fathom.spec.posttrain import DistillationLoss, PolicyLoss
from fathom.spec.train import UpdateSpec

QUESTION_PLACEHOLDER = "{question}"
ThinkingMode = Literal["open", "closed", "free"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """Ask through the model's chat template."""

    kind: ClassVar[str] = "chat"
    system: str = ""
    """The system prompt.

    Example: "Answer with a number."
    """
    thinking: ThinkingMode = "open"
    """The prompt opens the reasoning (open), has it closed already (closed), or leaves the choice to the model
    (free). Templates without reasoning are the same for all three.
    """

    def __post_init__(self) -> None:
        check.one_of("thinking", self.thinking, ("open", "closed", "free"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """Ask a base model by a plain text."""

    kind: ClassVar[str] = "text"
    text: str = ""
    r"""The text around {question}; empty is R1-Zero's template (R1 Table 1).

    Example: "Question: {question}\nAnswer:"
    """
    stop: tuple[str, ...] = ("</answer>",)
    """The answer ends at any of these texts, or with the model's end of sequence."""

    def __post_init__(self) -> None:
        if self.text and QUESTION_PLACEHOLDER not in self.text:
            raise SpecError(
                "text",
                f"{self.text!r} has no place for the question",
                f"put {QUESTION_PLACEHOLDER} where it belongs",
                alone=True,
            )


Prompting = ChatPrompt | TextPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSpec:
    """What is sampled between updates: some answers to each of some problems."""

    questions: int
    """Problems of one rollout.

    Unit: problems
    Paper: 32 (R1 v2 §2.1)
    Example: 16
    """
    group_size: int
    """Answers to each problem: the group whose mean reward an answer is compared with.

    Unit: answers
    Paper: 64 (DeepSeekMath §4.2), 16 (R1 v2 §2.1)
    Example: 16
    """
    max_tokens: int
    """Longer answers are cut and count as unfinished.

    Unit: tokens
    Paper: 1024 (DeepSeekMath §4.2), 32,768 (R1 v2 §2.1)
    Example: 128
    """
    temperature: float = 1.0
    """Temperature of the distribution that answers are sampled from, and of the softmax in the loss.

    Paper: 1.0 (R1 v2 §2.1), 0.7 (R1 v2 §3.2.2)
    """
    top_p: float = 1.0
    """Must be 1: the loss is of the whole softmax, and so must be the distribution that answers are sampled from."""
    resample: int = 0
    """How often other problems take the places of groups whose answers are all rewarded alike, which teach nothing.

    Unit: times
    """
    prompt: Prompting = field(default_factory=ChatPrompt)
    """How problems are asked: through the chat template, or as a text."""

    def __post_init__(self) -> None:
        for name in ("questions", "max_tokens", "temperature"):
            check.positive(name, getattr(self, name))
        if self.top_p != 1:
            problem = f"{self.top_p} samples from a part of the softmax, while the loss is of all of it"
            raise SpecError("top_p", problem, "leave it at 1, and lower temperature for likelier tokens", alone=True)
        check.not_negative("resample", self.resample)
        check.positive("group_size", self.group_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineSpec(UpdateSpec):
    """Training on sampled answers: sample, score, and take some optimizer steps, again and again."""

    rollouts: int
    """How often answers are sampled and learned from.

    Unit: rollouts
    Paper: 10,400 (R1-Zero, R1 v2 §2.1)
    Example: 100
    """
    rollout: RolloutSpec
    """What is sampled between updates."""
    updates: int = 1
    """Optimizer steps that the answers of one rollout are divided over.

    Unit: optimizer steps
    Paper: 1 (DeepSeekMath §4.2), 16 (R1 v2 §2.1)
    """
    epochs: int = 1
    """How often the answers of one rollout are learned from.

    Unit: epochs
    Paper: 1 (R1 v2 §2.1)
    """
    micro_batch_tokens: int = 8192
    """Tokens of one forward pass at most.

    Unit: tokens
    """
    balanced: bool = False
    """Whether the routers' balance losses count too."""
    max_logprob_difference: float | None = None
    """Stop where the log-probabilities of any token, as sampled and as the trainer computes them, differ by more, or
    those of one token in a hundred by a tenth of it. Left out: 0.05 in float32, which agrees to 1e-4, and 5 in
    bfloat16.

    Unit: nats
    Example: 0.05
    """
    replay_routing: bool = False
    """Whether every token goes to the experts that the rollout chose."""

    def __post_init__(self) -> None:
        UpdateSpec.__post_init__(self)
        for name in ("rollouts", "updates", "epochs", "micro_batch_tokens"):
            check.positive(name, getattr(self, name))
        if self.max_logprob_difference is not None:
            check.positive("max_logprob_difference", self.max_logprob_difference)
        answers = self.rollout.questions * self.rollout.group_size
        if self.updates > answers:
            raise SpecError("updates", f"{self.updates} exceeds the {answers} answers of a rollout", "take fewer steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec(OnlineSpec):
    """GRPO on sampled answers (DeepSeekMath §4)."""

    loss: PolicyLoss = field(default_factory=PolicyLoss)
    """The policy's loss: clipping, normalisation, KL term, advantages."""
    reference_every: int | None = None
    """After so many rollouts the reference becomes the policy of that time; left out, it stays where it began. Needs
    loss.kl.

    Unit: rollouts
    Paper: 400 (R1 v2 §2.1)
    Example: 400
    """

    def __post_init__(self) -> None:
        OnlineSpec.__post_init__(self)
        if self.rollout.group_size < 2:
            raise SpecError("rollout.group_size", "one answer has no group to be better than", "use at least 2")
        if self.reference_every is not None:
            check.positive("reference_every", self.reference_every)
            if self.loss.kl is None:
                raise SpecError("reference_every", "needs a reference, and thus a KL term", "set loss.kl")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSpec(OnlineSpec):
    """On-policy distillation: the student answers, and learns the teacher's distribution on its own tokens."""

    loss: DistillationLoss = field(default_factory=DistillationLoss)
    """How far the student is from the teacher."""

    def __post_init__(self) -> None:
        OnlineSpec.__post_init__(self)
        if self.rollout.resample:
            raise SpecError("rollout.resample", "no answer is rewarded, thus none alike", "leave it out")
