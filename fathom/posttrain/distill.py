"""On-policy distillation: the student answers, and at every token it drew learns what the teacher would have said.

N tokens of the answers of a micro-batch, B answers of a rollout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.errors import SpecError
from fathom.model.decoder import Decoder
from fathom.posttrain.logprob_monitor import LogprobMonitor
from fathom.posttrain.losses import answer_statistics, chosen_logprobs, divergence, entropy
from fathom.posttrain.online import OnlineTrainer, RolloutBatch
from fathom.posttrain.problem_stream import ProblemStream
from fathom.posttrain.prompts import PromptFormatter
from fathom.posttrain.rollout import RolloutSampler
from fathom.posttrain.scoring import select_target_tokens
from fathom.spec.posttrain import DistillationLoss
from fathom.spec.rollout import DistillSpec
from fathom.train.micro_batch import MicroBatch
from fathom.train.objective import ObjectiveOutput
from fathom.train.state import Position

MEASURED = ("divergence", "entropy", "logprob", "teacher_logprob")
"""What is summed over the answers' tokens; the log-probabilities are both models' of the tokens that were drawn."""


@dataclass(frozen=True, slots=True)
class DistillObjective:
    """The mean divergence from ``teacher`` over the answers' tokens of a batch, none of which weighs more than another.

    Column ``sampled`` holds the log-probabilities that ``watch`` compares. Only the student gets gradients.
    """

    teacher: Decoder
    loss: DistillationLoss
    chunk_tokens: int
    watch: LogprobMonitor

    def __call__(self, model: Decoder, hidden_BTD: Tensor, micro: MicroBatch) -> ObjectiveOutput:
        """Return the micro-batch's part of the mean, and sums over its tokens."""
        hidden_ND, targets_N, learned_N = select_target_tokens(hidden_BTD, micro)
        with torch.no_grad():
            taught_BTD = self.teacher(micro.tokens_BT, packed=micro.packed).hidden_BTD
        taught_ND, _, _ = select_target_tokens(taught_BTD, micro)

        def with_both_heads(hidden_ND: Tensor, head_VD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            return self.teacher.apply_head(taught_ND, partial(self._compute, hidden_ND, head_VD, targets_N))

        loss_N, seen_N, theirs_N, entropy_N = model.apply_head(hidden_ND, with_both_heads)
        self.watch.observe(seen_N, micro.columns["sampled"][learned_N])
        told = dict(zip(MEASURED, (loss_N.detach(), entropy_N, seen_N, theirs_N), strict=True))
        sums = {name: value_N.sum() for name, value_N in told.items()} | {"tokens": learned_N.sum()}
        return ObjectiveOutput(loss_N.sum() * (micro.share / max(len(targets_N), 1)), sums)

    def _compute(
        self, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, taught_ND: Tensor, teacher_VD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return each token's divergence, both models' log-probabilities and the student's entropy, all (N,)."""
        chunk = self.chunk_tokens
        loss_N = divergence(hidden_ND, head_VD, taught_ND, teacher_VD, self.loss, chunk_tokens=chunk)
        with torch.no_grad():
            seen_N = chosen_logprobs(hidden_ND, head_VD, targets_N, chunk_tokens=chunk)
            theirs_N = chosen_logprobs(taught_ND, teacher_VD, targets_N, chunk_tokens=chunk)
            entropy_N = entropy(hidden_ND, head_VD, chunk_tokens=chunk)
        return loss_N, seen_N, theirs_N, entropy_N


class DistillTrainer(OnlineTrainer):
    """Trains a student on its own answers towards ``teacher``, a frozen model of the same vocabulary and any shape."""

    spec: DistillSpec

    def __init__(
        self,
        model: Decoder,
        spec: DistillSpec,
        sampler: RolloutSampler,
        prompt_formatter: PromptFormatter,
        questions: ProblemStream,
        directory: Path,
        *,
        teacher: Decoder,
        **surroundings: Any,
    ) -> None:
        super().__init__(model, spec, sampler, prompt_formatter, questions, directory, **surroundings)
        if teacher.spec.vocab_size != model.spec.vocab_size:
            sizes = f"has a vocabulary of {teacher.spec.vocab_size} tokens, the student one of {model.spec.vocab_size}"
            raise SpecError("teacher", sizes, "use a teacher with the student's tokenizer")
        self.teacher = teacher.eval().requires_grad_(False)

    @property
    def context(self) -> int:
        """How long a prompt with its answer may be: as both models allow."""
        return min(super().context, self.teacher.spec.max_position_embeddings)

    def objective(self) -> DistillObjective:
        """Return the divergence from the teacher."""
        return DistillObjective(self.teacher, self.spec.loss, self.spec.loss_chunk_tokens, self.watch)

    def begin(self, position: Position) -> None:
        """Need nothing: the teacher never changes."""

    def end(self, position: Position) -> None:
        """Need nothing."""

    def collect_rollouts(self, number: int) -> RolloutBatch:
        """Draw answers; all of them are learned from."""
        asked = self.questions.next(self.spec.rollout.questions)
        rollouts = self.sample(asked, number)
        values: dict[str, Any] = answer_statistics(
            torch.tensor([len(rollout.answer_ids) for rollout in rollouts]), [None] * len(rollouts)
        )
        finished = sum(rollout.finished for rollout in rollouts) / max(len(rollouts), 1)
        missing = len(asked) * self.spec.rollout.group_size - len(rollouts)
        values |= {"finished": finished, "missing_answers": missing}
        return RolloutBatch(
            rollouts=rollouts, columns={"sampled": [rollout.logprobs for rollout in rollouts]}, values=values
        )

    def measured(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Return means over the tokens of ``MEASURED``."""
        return {name: sums[name] / sums["tokens"] for name in MEASURED if sums["tokens"]}
