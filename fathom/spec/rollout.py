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
    """Ask through the model's chat template.

    ``thinking``: the prompt opens the reasoning (``open``), has it closed already (``closed``), or leaves the choice to
    the model (``free``). Templates without reasoning are the same for all three.
    """

    kind: ClassVar[str] = "chat"
    system: str = ""
    thinking: ThinkingMode = "open"

    def __post_init__(self) -> None:
        check.one_of("thinking", self.thinking, ("open", "closed", "free"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """Ask a base model by a plain text around ``{question}``; empty ``text`` is R1-Zero's template (R1 Table 1).

    The answer ends at any of ``stop``, or with the model's end of sequence.
    """

    kind: ClassVar[str] = "text"
    text: str = ""
    stop: tuple[str, ...] = ("</answer>",)

    def __post_init__(self) -> None:
        if self.text and QUESTION_PLACEHOLDER not in self.text:
            raise SpecError(
                "text", f"{self.text!r} has no place for the question", f"put {QUESTION_PLACEHOLDER} where it belongs"
            )


Prompting = ChatPrompt | TextPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSpec:
    """What is sampled between updates: ``group_size`` answers to each of ``questions`` problems.

    A group whose answers are all rewarded alike teaches nothing: up to ``resample`` times, other problems take the
    places of such groups. Answers longer than ``max_tokens`` are cut and count as unfinished. ``top_p`` must be 1: the
    losses are of the whole softmax at ``temperature``, and so must be the distribution that answers are sampled from.
    """

    questions: int
    group_size: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    resample: int = 0
    prompt: Prompting = field(default_factory=ChatPrompt)

    def __post_init__(self) -> None:
        for name in ("questions", "max_tokens", "temperature"):
            check.positive(name, getattr(self, name))
        if self.top_p != 1:
            problem = f"{self.top_p} samples from a part of the softmax, while the loss is of all of it"
            raise SpecError("top_p", problem, "leave it at 1, and lower temperature for likelier tokens")
        check.not_negative("resample", self.resample)
        check.positive("group_size", self.group_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineSpec(UpdateSpec):
    """Training on sampled answers: ``rollouts`` times sample, score, and take ``updates`` steps ``epochs`` times.

    ``micro_batch_tokens`` bounds the tokens of one forward pass. ``balanced`` keeps the routers' balance losses.
    ``max_logprob_difference`` (nats) stops the run where the log-probabilities of any token as it was sampled and as
    the trainer computes it differ by more, or those of one token in a hundred by more than a tenth of it. None is the
    bound of the precision: 0.05 in float32, which agrees to 1e-4, and 5 in bfloat16. ``replay_routing`` sends every
    token to the experts that the rollout chose.
    """

    rollouts: int
    rollout: RolloutSpec
    updates: int = 1
    epochs: int = 1
    micro_batch_tokens: int = 8192
    balanced: bool = False
    max_logprob_difference: float | None = None
    replay_routing: bool = False

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
    """GRPO. Every ``reference_every`` rollouts the reference is synced with the policy (R1: every 400 steps)."""

    loss: PolicyLoss = field(default_factory=PolicyLoss)
    reference_every: int | None = None

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

    def __post_init__(self) -> None:
        OnlineSpec.__post_init__(self)
        if self.rollout.resample:
            raise SpecError("rollout.resample", "no answer is rewarded, thus none alike", "leave it out")
