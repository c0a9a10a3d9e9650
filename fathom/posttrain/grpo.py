"""Group relative policy optimization (DeepSeekMath §4.1): answers of a group, or their steps, are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.data.saved_position import saved_count
from fathom.model.decoder import Decoder
from fathom.posttrain.credit import token_advantages
from fathom.posttrain.losses import (
    PolicyTerms,
    TokenAdvantages,
    answer_statistics,
    penalised_advantages,
    penalised_rewards,
    policy_statistics,
    token_weights,
)
from fathom.posttrain.online import OnlineTrainer, RolloutBatch
from fathom.posttrain.policy import PolicyObjective
from fathom.posttrain.problem_stream import ProblemStream
from fathom.posttrain.prompts import PromptFormatter
from fathom.posttrain.reference import STATE_KEY, ReferenceModel
from fathom.posttrain.rewards.base import Judgement, RewardInput
from fathom.posttrain.rollout import Rollout, RolloutSampler
from fathom.posttrain.scoring import rollout_logprobs
from fathom.spec.rollout import PolicySpec
from fathom.train.state import Position

RewardFn = Callable[[Sequence[RewardInput]], Sequence[Judgement]]


@dataclass(frozen=True, slots=True)
class _ScoredRollouts:
    """Answers with their judgements; ``advantages`` compare all of them, group by group."""

    rollouts: list[Rollout]
    judgements: list[Judgement]
    advantages: TokenAdvantages

    @property
    def lengths(self) -> list[int]:
        """How many tokens each answer has."""
        return [len(rollout.answer_ids) for rollout in self.rollouts]


class PolicyTrainer(OnlineTrainer):
    """GRPO with any rewards. Groups whose answers have equal rewards are counted, and resampled if asked to.

    Under process supervision a group is alike where no kind of reward differs: neither outcomes nor steps.
    """

    spec: PolicySpec

    def __init__(
        self,
        model: Decoder,
        spec: PolicySpec,
        sampler: RolloutSampler,
        prompt_formatter: PromptFormatter,
        questions: ProblemStream,
        directory: Path,
        *,
        judge: RewardFn,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, spec, sampler, prompt_formatter, questions, directory, **kwargs)
        self._judge = judge
        self._reference: ReferenceModel | None = None
        self._recorded_reference: int | None = None
        if spec.loss.kl is not None:
            self._reference = ReferenceModel(model, directory, spec.reference_every)

    def objective(self) -> PolicyObjective:
        """Return the policy loss."""
        return PolicyObjective(
            self.spec.loss, self.spec.rollout.temperature, self.spec.loss_chunk_tokens, self.logprob_monitor
        )

    def state(self) -> dict[str, Any]:
        """Return where the problems stand, and which reference is in use."""
        reference = {} if self._reference is None else {STATE_KEY: self._reference.step}
        return super().state() | reference

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's problems; its reference is opened when its weights are."""
        super().restore(state)
        self._recorded_reference = None if state.get(STATE_KEY) is None else saved_count(state, STATE_KEY)

    def begin(self, position: Position) -> None:
        """Restore the reference of this position."""
        if self._reference is not None:
            self._reference.begin(position.step, self._recorded_reference)

    def end(self, position: Position) -> None:
        """Update the reference when it is due."""
        if self._reference is not None:
            self._reference.after(position.step)

    def collect_rollouts(self, number: int) -> RolloutBatch:
        """Sample groups of answers, judge them, and give every token its advantage over its group."""
        judged, replaced = self._varied(number)
        values = self._values(judged, replaced)
        chosen = self._trainable(judged)
        if not chosen:
            return RolloutBatch(rollouts=(), columns={}, values=values)
        weights = self._weights(judged.lengths)
        rollouts = [judged.rollouts[index] for index in chosen]
        columns: dict[str, list[list[float]]] = {
            "sampled": [list(rollout.logprobs) for rollout in rollouts],
            "weight": [weights[index] for index in chosen],
            "right": [[_verdict(judged.judgements[i])] * len(judged.rollouts[i].answer_ids) for i in chosen],
        }
        old = self._logprobs(self.model, rollouts) if self._needs_old else columns["sampled"]
        if self._needs_old:
            columns["old"] = old
        if self._reference is not None:
            columns["reference"] = self._logprobs(self._reference.model, rollouts)
        values_N = (
            self._penalised(judged, old, columns["reference"])
            if self._penalty_outside_loss
            else judged.advantages.values_N
        )
        pieces = values_N.split_with_sizes(judged.lengths)
        columns["advantage"] = [pieces[index].tolist() for index in chosen]
        return RolloutBatch(rollouts=rollouts, columns=columns, values=values)

    def reduce_metrics(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Turn sums over tokens into means and shares."""
        terms = PolicyTerms(**{f.name: torch.tensor(sums[f.name]) for f in fields(PolicyTerms)})
        values: dict[str, Any] = policy_statistics(terms)
        values |= {"entropy": sums["entropy"] / sums["tokens"]} if sums["tokens"] else {}
        for name in ("right", "wrong"):
            if sums[f"tokens_{name}"]:
                values[f"entropy_{name}"] = sums[f"entropy_{name}"] / sums[f"tokens_{name}"]
        return values

    @property
    def _needs_old(self) -> bool:
        """Whether the policy is updated more than once a rollout, so that its log-probabilities must be kept."""
        return self.spec.updates * self.spec.epochs > 1 or self._penalty_outside_loss

    @property
    def _penalty_outside_loss(self) -> bool:
        """Whether the KL penalty is subtracted from rewards or advantages; every answer is then trained on."""
        return self.spec.loss.kl is not None and self.spec.loss.kl.place != "loss"

    def _varied(self, number: int) -> tuple[_ScoredRollouts, int]:
        """Draw and judge a rollout; where ``resample`` allows, groups without variance give way to other problems."""
        wanted, drawn, replaced = self.spec.rollout.questions, 0, 0
        kept: list[Rollout] = []
        kept_judgements: list[Judgement] = []
        for attempt in range(self.spec.rollout.resample + 1):
            missing = wanted - len({rollout.group for rollout in kept})
            rollouts = self.sample(self.questions.next(missing), number, first_group=drawn)
            drawn += missing
            judged = self._judged(rollouts)
            last = attempt == self.spec.rollout.resample
            for index, varied in enumerate(judged.advantages.varied_B.tolist()):
                if varied or last:
                    kept.append(judged.rollouts[index])
                    kept_judgements.append(judged.judgements[index])
            if last or bool(judged.advantages.varied_B.all()):
                break
            replaced += judged.advantages.zero_variance_groups
        return self._compared(kept, kept_judgements), replaced

    def _judged(self, rollouts: list[Rollout]) -> _ScoredRollouts:
        questions: dict[int, str] = {}
        for rollout in rollouts:
            questions.setdefault(rollout.group, self.prompt_formatter.question(rollout.problem))
        answers = [
            RewardInput(
                prompt=questions[rollout.group],
                answer=rollout.text,
                problem=rollout.problem,
                finished=rollout.finished,
            )
            for rollout in rollouts
        ]
        return self._compared(rollouts, list(self._judge(answers)) if answers else [])

    def _compared(self, rollouts: list[Rollout], judgements: list[Judgement]) -> _ScoredRollouts:
        advantages = token_advantages(rollouts, judgements, self.prompt_formatter, self.spec.loss.advantage)
        return _ScoredRollouts(rollouts, judgements, advantages)

    def _trainable(self, judged: _ScoredRollouts) -> list[int]:
        """Return the answers whose tokens have a gradient: all with a KL term, else those of groups that vary."""
        if self.spec.loss.kl is not None:
            return list(range(len(judged.rollouts)))
        return [index for index, varied in enumerate(judged.advantages.varied_B.tolist()) if varied]

    def _weights(self, lengths: Sequence[int]) -> list[list[float]]:
        """Weigh all answers' tokens; each of the rollout's steps sees its share of them, and counts as a whole."""
        lengths_B = torch.tensor(lengths)
        row_N = torch.repeat_interleave(torch.arange(len(lengths)), lengths_B)
        weights_N = token_weights(row_N, len(lengths), lengths_B, self.spec.loss) * self.spec.updates
        return [piece.tolist() for piece in weights_N.split_with_sizes(list(lengths))]

    def _penalised(
        self, judged: _ScoredRollouts, old: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]
    ) -> Tensor:
        """Take the KL penalty off every answer's reward, before answers are compared, or off every token's advantage.

        Under process supervision the penalty of an answer is one of its outcome.
        """
        penalty = self.spec.loss.kl
        assert penalty is not None
        old_N, reference_N = _flat(old), _flat(reference)
        if penalty.place == "advantage":
            return penalised_advantages(judged.advantages.values_N, old_N, reference_N, penalty)
        row_N = torch.repeat_interleave(torch.arange(len(judged.lengths)), torch.tensor(judged.lengths))
        none_B = torch.zeros(len(judged.lengths), dtype=torch.float64)
        changes_B = penalised_rewards(none_B, old_N, reference_N, row_N, penalty)
        spec = self.spec.loss.advantage
        return token_advantages(judged.rollouts, judged.judgements, self.prompt_formatter, spec, changes_B).values_N

    def _logprobs(self, model: Decoder, rollouts: Sequence[Rollout]) -> list[list[float]]:
        spec = self.spec
        return rollout_logprobs(
            model, rollouts, spec, temperature=spec.rollout.temperature, micro_batch_tokens=spec.micro_batch_tokens
        )

    def _values(self, judged: _ScoredRollouts, replaced: int) -> dict[str, Any]:
        judgements = judged.judgements
        values: dict[str, Any] = answer_statistics(
            torch.tensor(judged.lengths), [judgement.correct for judgement in judgements], advantages=judged.advantages
        )
        parts: dict[str, list[float]] = {}
        failures: Counter[str] = Counter()
        for judgement in judgements:
            for name, value in judgement.parts.items():
                parts.setdefault(name, []).append(value)
            failures.update(f"{name}: {why}" for name, why in judgement.failures.items())
        if any(judgement.steps for judgement in judgements):
            scored = [step.value for judgement in judgements for each in judgement.steps.values() for step in each]
            values["scored_steps"] = len(scored) / len(judgements)
            values |= {"step_score": sum(scored) / len(scored)} if scored else {}
        finished = sum(rollout.finished for rollout in judged.rollouts)
        asked = self.spec.rollout.questions * self.spec.rollout.group_size
        return values | {
            "reward": sum(judgement.total for judgement in judgements) / max(len(judgements), 1),
            "rewards": {name: sum(given) / len(given) for name, given in parts.items()},
            "tasks": _by_task(judged),
            "failures": dict(failures),
            "finished": finished / max(len(judgements), 1),
            "resampled_groups": replaced,
            "missing_answers": asked - len(judgements),
        }


def _by_task(judged: _ScoredRollouts) -> dict[str, dict[str, float]]:
    """Return the mean reward and length of every task's answers, and the share of them that are right."""
    answers: dict[str, list[tuple[int, Judgement]]] = {}
    for rollout, length, judgement in zip(judged.rollouts, judged.lengths, judged.judgements, strict=True):
        answers.setdefault(rollout.problem.task, []).append((length, judgement))
    found = {}
    for task, given in sorted(answers.items()):
        verdicts = [judgement.correct for _, judgement in given if judgement.correct is not None]
        found[task] = {
            "reward": sum(judgement.total for _, judgement in given) / len(given),
            "length": sum(length for length, _ in given) / len(given),
        } | ({"accuracy": sum(verdicts) / len(verdicts)} if verdicts else {})
    return found


def _verdict(judgement: Judgement) -> float:
    return -1.0 if judgement.correct is None else float(judgement.correct)


def _flat(values: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([value for each in values for value in each], dtype=torch.float64)
