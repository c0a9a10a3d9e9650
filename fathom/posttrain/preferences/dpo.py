"""Direct preference optimization as an objective, and its reference log-probabilities: those of the initial model.

X pairs; of the B sequences chosen and rejected come in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fathom.data.conversations.loss_mask import Sample
from fathom.model.decoder import Decoder
from fathom.model.device import to_device
from fathom.posttrain.losses import answer_logprobs, chosen_logprobs, dpo_loss
from fathom.posttrain.preferences.batched_forward import PASS_TOKENS, batched_hidden_states
from fathom.posttrain.preferences.loader import SHARE, TrainingExample
from fathom.posttrain.preferences.pairs import PreferencePair
from fathom.spec.posttrain import DpoLoss
from fathom.spec.targets import IGNORE_INDEX
from fathom.train.micro_batch import MicroBatch
from fathom.train.objective import ObjectiveOutput

REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class PreferenceObjective:
    """The mean of ``dpo_loss`` over the batch's pairs, from batches of ``GroupLoader`` with a column "reference".

    Sums are means over the pairs too: ``accuracy`` is the share of pairs whose chosen answer has the higher implied
    reward, ``margin`` by how much, then both implied rewards and both answers' log-probabilities.
    """

    spec: DpoLoss
    chunk_tokens: int

    def __call__(self, model: Decoder, hidden_BTD: Tensor, micro: MicroBatch) -> ObjectiveOutput:
        """Return the micro-batch's part of the mean."""
        assert micro.packed is not None
        targets_N = micro.targets_BT[0]
        is_target_N = targets_N != IGNORE_INDEX
        row_N = rows_of(micro.packed.lengths, targets_N.device)[is_target_N]
        logprobs = partial(chosen_logprobs, targets_N=targets_N[is_target_N], chunk_tokens=self.chunk_tokens)
        logprobs_N = model.apply_head(hidden_BTD[0][is_target_N], logprobs)
        policy_B, reference_B = (
            answer_logprobs(values_N, row_N, len(micro.packed.lengths), average=self.spec.average)
            for values_N in (logprobs_N, micro.columns[REFERENCE][is_target_N].to(logprobs_N.dtype))
        )
        terms = dpo_loss(policy_B, reference_B, self.spec)
        share = micro.columns[SHARE][0]
        chosen_2X = policy_B.detach().view(-1, 2).t()
        reward_2X = self.spec.beta * (chosen_2X - reference_B.view(-1, 2).t())
        metrics = {
            "accuracy": (terms.margin_X > 0).to(terms.margin_X.dtype),
            "margin": terms.margin_X,
            "chosen_reward": reward_2X[0],
            "rejected_reward": reward_2X[1],
            "chosen_logprob": chosen_2X[0],
            "rejected_logprob": chosen_2X[1],
        }
        return ObjectiveOutput(
            terms.loss_X.sum() * share, {name: value_X.sum() * share for name, value_X in metrics.items()}
        )


def rows_of(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return the index of the packed sequence that each token belongs to, int64 (N,)."""
    return to_device(torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)), device)


def entry(sample: Sample) -> TrainingExample:
    """Return a sample as tokens that are read and tokens that are predicted."""
    tokens = torch.tensor(sample.tokens)
    learned = torch.tensor(sample.learned)
    return TrainingExample(tokens[:-1], torch.where(learned[1:], tokens[1:], IGNORE_INDEX))


def pair_groups(
    pairs: Sequence[PreferencePair], reference: Sequence[Tensor]
) -> list[tuple[TrainingExample, TrainingExample]]:
    """Return pairs as a ``GroupLoader`` takes them; ``reference`` is what ``reference_logprobs`` gave."""
    entries = [entry(sample) for pair in pairs for sample in (pair.chosen, pair.rejected)]
    with_reference = [
        TrainingExample(made.tokens_T, made.targets_T, {REFERENCE: logprobs_T})
        for made, logprobs_T in zip(entries, reference, strict=True)
    ]
    return list(zip(with_reference[::2], with_reference[1::2], strict=True))


def reference_logprobs(
    model: Decoder,
    pairs: Sequence[PreferencePair],
    *,
    chunk_tokens: int,
    tokens: int = PASS_TOKENS,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Return the model's log-probability of every target token, 0 elsewhere: (T,) for chosen and rejected in turn.

    ``dtype`` is what the training step computes its products in: the same as there, so that the first loss is log 2.
    """
    entries = [entry(sample) for pair in pairs for sample in (pair.chosen, pair.rejected)]
    found = [torch.zeros(0)] * len(entries)
    for indices, hidden_ND in batched_hidden_states(
        model, [made.tokens_T for made in entries], tokens=tokens, dtype=dtype
    ):
        targets_N = torch.cat([entries[index].targets_T for index in indices]).to(hidden_ND.device)
        with (
            torch.no_grad(),
            torch.autocast(hidden_ND.device.type, dtype=torch.bfloat16, enabled=dtype != torch.float32),
        ):
            logprobs = partial(chosen_logprobs, targets_N=targets_N, chunk_tokens=chunk_tokens)
            logprobs_N = model.apply_head(hidden_ND, logprobs)
        parts = torch.split(logprobs_N.cpu(), [len(entries[index]) for index in indices])
        for index, logprobs_T in zip(indices, parts, strict=True):
            found[index] = logprobs_T.clone()
    return found
