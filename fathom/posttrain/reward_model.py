"""Reward models: language models whose logit of one reserved token scores an answer.

A score is the logit of one reserved token, which no text uses, after the last token of a conversation: one row of the
output head is what a value head would be. So a reward model has no parameter of its own, begins with an SFT
checkpoint and is a checkpoint like any other; with tied embeddings the row is also the embedding of a token never read.

X pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fathom.chat.output.budget import think_end_ids, think_tag_ids
from fathom.data.conversations.loss_mask import encode_with_loss_mask
from fathom.data.conversations.templated import REASONING
from fathom.errors import DataError
from fathom.model.decoder import Decoder
from fathom.model.device import numbers_on
from fathom.model.head import OutputHead
from fathom.posttrain.losses import pairwise_loss, pointwise_loss
from fathom.posttrain.preferences.batched_forward import PASS_TOKENS, batched_hidden_states
from fathom.posttrain.preferences.loader import SHARE, TrainingExample
from fathom.posttrain.rewards.base import RewardInput, StepScore
from fathom.posttrain.rewards.extract import thinking_span
from fathom.posttrain.rewards.steps import steps_of
from fathom.spec.posttrain import PairwiseLoss, RewardModelLoss
from fathom.spec.sampling import Sampler, SamplingParams
from fathom.spec.targets import IGNORE_INDEX
from fathom.tokenizer import Tokenizer, special
from fathom.train.micro_batch import MicroBatch
from fathom.train.objective import ObjectiveOutput

TARGET = "target"
THINK_PREFIX = special.THINK_BEGIN + "\n"
MAX_SCORED_STEPS = 64
"""So many steps of one answer are scored, each in a forward pass over all before it."""


@dataclass(frozen=True, slots=True)
class RewardObjective:
    """The mean loss of a batch's pairs, or of its single answers, from batches of ``GroupLoader``.

    Pairs lie chosen, rejected; single answers have their score in a column "target". Sums are means too: ``accuracy``
    and ``margin`` of pairs, ``score`` and ``error`` (absolute) of single answers.
    """

    spec: RewardModelLoss
    score_token: int

    def __call__(self, model: Decoder, hidden_BTD: Tensor, micro: MicroBatch) -> ObjectiveOutput:
        """Return the micro-batch's part of the mean."""
        assert micro.packed is not None
        last_B = _last(micro.packed.lengths, hidden_BTD.device)
        scores_B = _scores(hidden_BTD[0], last_B, model, self.score_token)
        share = micro.columns[SHARE][0]
        metrics: dict[str, Tensor]
        if isinstance(self.spec, PairwiseLoss):
            terms = pairwise_loss(scores_B, self.spec.margin)
            loss, metrics = terms.loss_X, {"accuracy": (terms.margin_X > 0).float(), "margin": terms.margin_X}
        else:
            targets_B = micro.columns[TARGET][last_B]
            loss = pointwise_loss(scores_B, targets_B, self.spec)
            given_B = scores_B.detach() if self.spec.form == "mse" else scores_B.detach().sigmoid()
            metrics = {"score": given_B, "error": (given_B - targets_B).abs()}
        return ObjectiveOutput(loss.sum() * share, {name: values.sum() * share for name, values in metrics.items()})


def scoring_example(tokens: Sequence[int], target: float | None = None) -> TrainingExample:
    """Return a sequence as it is scored: read to its last token, nothing of it predicted."""
    tokens_T = torch.tensor(tokens)
    columns = {} if target is None else {TARGET: torch.full(tokens_T.shape, target)}
    return TrainingExample(tokens_T, torch.full_like(tokens_T, IGNORE_INDEX), columns)


def score(
    model: Decoder,
    sequences: Sequence[Sequence[int]],
    *,
    score_token: int,
    tokens: int = PASS_TOKENS,
    dtype: torch.dtype = torch.float32,
) -> list[float]:
    """Return every sequence's score; passes hold at most ``tokens`` tokens and compute their products in ``dtype``."""
    found = [math.nan] * len(sequences)
    laid = [torch.tensor(sequence) for sequence in sequences]
    for indices, hidden_ND in batched_hidden_states(model, laid, tokens=tokens, dtype=dtype):
        last_B = _last([len(sequences[index]) for index in indices], hidden_ND.device)
        with torch.no_grad():
            scores = _scores(hidden_ND, last_B, model, score_token).tolist()
        for index, value in zip(indices, scores, strict=True):
            found[index] = value
    return found


def conversation(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], answer: str | Mapping[str, Any]
) -> list[int]:
    """Return a conversation with an answer as a reward model reads it: by the chat template, reasoning included.

    Raises:
        DataError: the chat template refuses it.
    """
    said = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    return encode_with_loss_mask(tokenizer, [*messages, said]).tokens


def choose_score_token(tokenizer: Tokenizer, vocab_size: int, sequences: Iterable[Sequence[int]]) -> int:
    """Return a token that none of the sequences has: padding, another special token, or an id without a token.

    Raises:
        DataError: every special token is used and the vocabulary has no row to spare.
    """
    used = {token for sequence in sequences for token in sequence} | {tokenizer.eos_id}
    spare = range(vocab_size - 1, tokenizer.vocab_size - 1, -1)
    candidates: list[int] = [tokenizer.pad_id, *sorted(tokenizer.special_ids, reverse=True), *spare[:1]]
    for token in candidates:
        if token not in used and token < vocab_size:
            return token
    raise DataError("tokenizer: has no token that texts leave unused; add a padding token to its vocabulary")


def clear_score(model: Decoder, score_token: int) -> None:
    """Let every score be 0: a row that was never a target of pretraining holds a large negative bias."""
    with torch.no_grad():
        assert isinstance(model.lm_head, OutputHead)
        model.lm_head.weight_VD[score_token].zero_()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningGenerator:
    """Has the reward model think about an answer before it scores it (V3 §5.2.1).

    Behind the conversation comes what the model itself writes between think tags, its likeliest tokens and at most
    ``max_tokens``; the score stands after the closing tag.
    """

    sampler: Sampler
    tokenizer: Tokenizer
    max_tokens: int

    @staticmethod
    def token_budget(tokenizer: Tokenizer, max_tokens: int) -> int:
        """Return how many tokens reasoning of at most ``max_tokens`` adds, its tags included."""
        return max_tokens + len(think_tag_ids(tokenizer, THINK_PREFIX)) + len(think_end_ids(tokenizer))

    def extend(self, sequences: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the sequences with reasoning behind them; ``token_budget`` must be left in the context."""
        opening, closing = think_tag_ids(self.tokenizer, THINK_PREFIX), think_end_ids(self.tokenizer)
        stops = closing if len(closing) == 1 else ()
        prompts = [[*sequence, *opening] for sequence in sequences]
        params = SamplingParams(max_tokens=self.max_tokens, temperature=0.0, stop_token_ids=stops)
        written = self.sampler.sample(prompts, params) if prompts else []
        return [[*prompt, *one.token_ids, *closing] for prompt, one in zip(prompts, written, strict=True)]


def make_score_fn(
    model: Decoder, tokenizer: Tokenizer, *, score_token: int, reasoning: ReasoningGenerator | None = None
) -> Callable[[Sequence[RewardInput]], list[float]]:
    """Return what scores a judge's ``ModelReward``: question and answer as a conversation, whichever model wrote them.

    An answer that does not fit the model's context, or that its chat template refuses, scores nan: the judge counts it.
    """
    room = model.spec.max_position_embeddings
    if reasoning is not None:
        room -= ReasoningGenerator.token_budget(tokenizer, reasoning.max_tokens)

    def scores(answers: Sequence[RewardInput]) -> list[float]:
        sequences = [_read(tokenizer, answered, answered.answer, room) for answered in answers]
        fitting = [sequence for sequence in sequences if sequence is not None]
        if reasoning is not None:
            fitting = reasoning.extend(fitting)
        found = iter(score(model, fitting, score_token=score_token))
        return [math.nan if sequence is None else next(found) for sequence in sequences]

    return scores


def make_step_score_fn(
    model: Decoder, tokenizer: Tokenizer, *, score_token: int
) -> Callable[[Sequence[RewardInput]], list[list[StepScore]]]:
    """Return what scores a judge's ``ModelReward`` with ``steps``: an answer as if it ended after each of its steps.

    Steps are those of the thinking (``rewards.steps``), and the whole answer is the last: each is a conversation of its
    own, whose reasoning ends with the step and whose content is empty. Of longer thinking the first 63 steps have
    scores. A model trained on whole answers only has not seen such prefixes: its
    scores of them are extrapolation. An answer that does not fit the context has one score, nan.
    """
    room = model.spec.max_position_embeddings

    def scores(answers: Sequence[RewardInput]) -> list[list[StepScore]]:
        asked: list[tuple[int, int]] = []
        sequences: list[list[int]] = []
        found: list[list[StepScore]] = [[] for _ in answers]
        for place, answered in enumerate(answers):
            for end, said in _answer_prefixes(answered.answer):
                ids = _read(tokenizer, answered, said, room)
                if ids is not None:
                    asked.append((place, end))
                    sequences.append(ids)
                elif said == answered.answer:
                    found[place].append(StepScore(end, math.nan))
        for (place, end), value in zip(asked, score(model, sequences, score_token=score_token), strict=True):
            found[place].append(StepScore(end, value))
        return found

    return scores


def _read(tokenizer: Tokenizer, answered: RewardInput, said: str | Mapping[str, Any], room: int) -> list[int] | None:
    """The input of a reward model for an answer or a prefix of one; None where it does not fit, or is refused."""
    try:
        ids = conversation(tokenizer, [{"role": "user", "content": answered.problem.question}], said)
    except DataError:
        return None
    return ids if len(ids) <= room else None


def _answer_prefixes(answer: str) -> Iterator[tuple[int, str | Mapping[str, Any]]]:
    """Yield each prefix of an answer that ends with a step, as its length and its text; the whole answer is last."""
    start, _ = thinking_span(answer)
    tagged = special.THINK_BEGIN in answer or special.THINK_END in answer
    for end, _ in islice(steps_of(answer), MAX_SCORED_STEPS - 1):
        if answer[end:].strip():
            thought = answer[start:end]
            yield end, {"role": "assistant", "content": "", REASONING: thought} if tagged else answer[:end]
    yield len(answer), answer


def _last(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Where the last token of each sequence stands, int64 (B,)."""
    return numbers_on(device, lengths).cumsum(0) - 1


def _scores(hidden_ND: Tensor, last_B: Tensor, model: Decoder, score_token: int) -> Tensor:
    """The logits of one token after the sequences' last tokens, float32 or wider, whatever autocast says: (B,)."""

    def project(hidden_BD: Tensor, head_VD: Tensor) -> Tensor:
        row_D = head_VD[score_token]
        wide = torch.promote_types(torch.promote_types(hidden_BD.dtype, row_D.dtype), torch.float32)
        return (hidden_BD.to(wide) * row_D.to(wide)).sum(-1)

    return model.apply_head(hidden_ND[last_B], project)
