"""The policy loss as an objective of training: log-probabilities, the loss over them, and metrics.

X tokens of one chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import reduce
from operator import add

import torch
from torch import Tensor

from fathom.model.decoder import Decoder
from fathom.posttrain.logprob_monitor import LogprobMonitor
from fathom.posttrain.losses import PolicyTerms, chosen_logprobs, entropy, policy_loss, token_loss
from fathom.posttrain.scoring import select_target_tokens
from fathom.spec.posttrain import PolicyLoss
from fathom.train.micro_batch import MicroBatch
from fathom.train.objective import ObjectiveOutput


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """The clipped policy loss over the answers' tokens.

    Columns: ``advantage``, ``weight`` and ``row``; ``sampled``, the log-probabilities that ``logprob_monitor``
    compares; ``old`` where more than one step is taken per rollout, else a step's own log-probabilities are the old
    ones; ``reference`` where there is one; and ``right``, 1 for correct answers, 0 for incorrect ones, -1 for unknown.
    """

    loss: PolicyLoss
    temperature: float
    chunk_tokens: int
    logprob_monitor: LogprobMonitor

    def __call__(self, model: Decoder, hidden_BTD: Tensor, micro: MicroBatch) -> ObjectiveOutput:
        """Return the micro-batch's part of the loss, and sums of what ``policy_statistics`` divides."""
        hidden_ND, targets_N, is_target_N = select_target_tokens(hidden_BTD, micro)
        columns = {name: column[is_target_N] for name, column in micro.columns.items()}

        def computed(hidden_ND: Tensor, head_VD: Tensor) -> tuple[Tensor, PolicyTerms, Tensor]:
            compute = self._by_token if self.loss.by_token else self._whole
            loss, terms, logprobs_N, entropy_N = compute(hidden_ND, head_VD, targets_N, columns)
            self._compare(hidden_ND, head_VD, targets_N, logprobs_N, columns["sampled"])
            return loss, terms, entropy_N

        loss, terms, entropy_N = model.apply_head(hidden_ND, computed)
        sums = {f.name: getattr(terms, f.name).detach() for f in fields(terms)}
        return ObjectiveOutput(loss, sums | _entropies(entropy_N, columns["right"]))

    def _by_token(
        self, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, columns: Mapping[str, Tensor]
    ) -> tuple[Tensor, PolicyTerms, Tensor, Tensor]:
        """Return loss, terms, log-probabilities and entropies from one pass over the logits."""
        each: list[PolicyTerms] = []

        def loss(logprobs_X: Tensor, rows: slice) -> Tensor:
            each.append(self._terms(logprobs_X, {name: column[rows] for name, column in columns.items()}))
            return each[-1].loss

        total, logprobs_N, entropy_N = token_loss(
            hidden_ND, head_VD, targets_N, loss, temperature=self.temperature, chunk_tokens=self.chunk_tokens
        )
        return total, reduce(add, each), logprobs_N, entropy_N

    def _whole(
        self, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, columns: Mapping[str, Tensor]
    ) -> tuple[Tensor, PolicyTerms, Tensor, Tensor]:
        """Return the same where an answer's tokens meet in the loss: none has a slope before all are known."""
        at, chunk = self.temperature, self.chunk_tokens
        logprobs_N = chosen_logprobs(hidden_ND, head_VD, targets_N, temperature=at, chunk_tokens=chunk)
        entropy_N = entropy(hidden_ND.detach(), head_VD.detach(), temperature=at, chunk_tokens=chunk)
        terms = self._terms(logprobs_N, columns)
        return terms.loss, terms, logprobs_N.detach(), entropy_N

    def _terms(self, logprobs_N: Tensor, columns: Mapping[str, Tensor]) -> PolicyTerms:
        return policy_loss(
            logprobs_N,
            columns.get("old", logprobs_N.detach()),
            columns["advantage"],
            columns["row"],
            columns["weight"],
            self.loss,
            columns.get("reference"),
        )

    def _compare(
        self, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, logprobs_N: Tensor, sampled_N: Tensor
    ) -> None:
        """Compare at temperature 1, of which the sampler's log-probabilities are."""
        if self.temperature != 1:
            with torch.no_grad():
                logprobs_N = chosen_logprobs(hidden_ND, head_VD, targets_N, chunk_tokens=self.chunk_tokens)
        self.logprob_monitor.observe(logprobs_N, sampled_N)


def _entropies(entropy_N: Tensor, right_N: Tensor) -> dict[str, Tensor]:
    sums = {"entropy": entropy_N.sum()}
    for name, value in (("right", 1.0), ("wrong", 0.0)):
        among_N = right_N == value
        sums |= {f"entropy_{name}": entropy_N[among_N].sum(), f"tokens_{name}": among_N.sum()}
    return sums
