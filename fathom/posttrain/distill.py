"""On-policy distillation: the student samples answers, and is trained towards the teacher's distribution at each
token.
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

METRIC_NAMES = ("divergence", "entropy", "logprob", "teacher_logprob")
"""Summed over the answers' tokens; the log-probabilities are both models' of the sampled tokens."""


@dataclass(frozen=True, slots=True)
class DistillObjective:
    """The mean divergence from ``teacher`` over the answers' tokens of a batch, none of which weighs more than another.

    Column ``sampled`` holds the log-probabilities that ``logprob_monitor`` compares. Only the student gets gradients.
    """

    teacher: Decoder
    loss: DistillationLoss
    chunk_tokens: int
    logprob_monitor: LogprobMonitor

    def __call__(self, model: Decoder, hidden_BTD: Tensor, micro: MicroBatch) -> ObjectiveOutput:
        """Return the micro-batch's part of the mean, and sums over its tokens."""
        hidden_ND, targets_N, is_target_N = select_target_tokens(hidden_BTD, micro)
        with torch.no_grad():
            teacher_hidden_BTD = self.teacher(micro.tokens_BT, packed=micro.packed).hidden_BTD
        teacher_hidden_ND, _, _ = select_target_tokens(teacher_hidden_BTD, micro)

        def with_both_heads(hidden_ND: Tensor, head_VD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            return self.teacher.apply_head(teacher_hidden_ND, partial(self._compute, hidden_ND, head_VD, targets_N))

        loss_N, logprobs_N, teacher_logprobs_N, entropy_N = model.apply_head(hidden_ND, with_both_heads)
        self.logprob_monitor.observe(logprobs_N, micro.columns["sampled"][is_target_N])
        metrics = dict(zip(METRIC_NAMES, (loss_N.detach(), entropy_N, logprobs_N, teacher_logprobs_N), strict=True))
        sums = {name: value_N.sum() for name, value_N in metrics.items()} | {"tokens": is_target_N.sum()}
        return ObjectiveOutput(loss_N.sum() * (micro.target_fraction / max(len(targets_N), 1)), sums)

    def _compute(
        self, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, teacher_hidden_ND: Tensor, teacher_VD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return each token's divergence, both models' log-probabilities and the student's entropy, all (N,)."""
        chunk = self.chunk_tokens
        loss_N = divergence(hidden_ND, head_VD, teacher_hidden_ND, teacher_VD, self.loss, chunk_tokens=chunk)
        with torch.no_grad():
            logprobs_N = chosen_logprobs(hidden_ND, head_VD, targets_N, chunk_tokens=chunk)
            teacher_logprobs_N = chosen_logprobs(teacher_hidden_ND, teacher_VD, targets_N, chunk_tokens=chunk)
            entropy_N = entropy(hidden_ND, head_VD, chunk_tokens=chunk)
        return loss_N, logprobs_N, teacher_logprobs_N, entropy_N


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
        **kwargs: Any,
    ) -> None:
        super().__init__(model, spec, sampler, prompt_formatter, questions, directory, **kwargs)
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
        return DistillObjective(self.teacher, self.spec.loss, self.spec.loss_chunk_tokens, self.logprob_monitor)

    def begin(self, position: Position) -> None:
        """No-op: the teacher never changes."""

    def end(self, position: Position) -> None:
        """No-op."""

    def collect_rollouts(self, number: int) -> RolloutBatch:
        """Sample answers; all of them are trained on."""
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

    def reduce_metrics(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Return means over the tokens of ``METRIC_NAMES``."""
        return {name: sums[name] / sums["tokens"] for name in METRIC_NAMES if sums["tokens"]}
