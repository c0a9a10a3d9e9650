"""The reward_model step: a reward model from an SFT checkpoint, with its accuracy on pairs it never saw."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fathom.checkpoint.tensor_cache import cached_tensors
from fathom.data.forms import Columns
from fathom.data.row_report import RowProblem, RowReport
from fathom.errors import DataError
from fathom.evals.accuracy import Accuracy
from fathom.files import sha256, write_json
from fathom.inference.language_model import LanguageModel
from fathom.pipeline.context import StepContext, named_step
from fathom.pipeline.reward_models import REWARD_FILE
from fathom.pipeline.run_models import trained_model
from fathom.pipeline.steps.dpo import ANSWERS
from fathom.pipeline.steps.epoch_training import (
    EpochData,
    cache_key,
    log_lines,
    log_report,
    longest_example,
    train_epochs,
)
from fathom.posttrain.preferences import (
    JudgedAnswer,
    Preference,
    TrainingExample,
    as_preference,
    encode_pairs,
    pair_best_with_worst,
    read_judged,
    read_preferences,
    subset_of_problems,
)
from fathom.posttrain.reward_model import (
    ReasoningGenerator,
    RewardObjective,
    choose_score_token,
    clear_score,
    conversation,
    score,
    scoring_example,
)
from fathom.spec.alignment import PairFile, RewardModelStep
from fathom.spec.answering import AnswersStep
from fathom.spec.posttrain import PairwiseLoss
from fathom.tokenizer import Tokenizer
from fathom.train.step import resolve_precision

HELD_OUT_DIVISOR = 10
"""One prompt in so many is held out, whatever its answers."""


@dataclass(slots=True)
class _PreferenceData:
    """Conversations by what they answer: pairs as places of the better and the worse one, and single ones' scores."""

    tokens: list[list[int]]
    pairs: list[tuple[str, int, int]]
    single: list[tuple[str, int, float]]

    def add(self, tokens: list[int]) -> int:
        self.tokens.append(tokens)
        return len(self.tokens) - 1


def run(step: RewardModelStep, context: StepContext) -> None:
    """Train in ``context.path(step)``, from the latest checkpoint there if there is one.

    ``reward.json`` beside the checkpoints holds the score token, and how many held-out pairs are ranked
    correctly by the model that the step starts from and by the trained one.
    """
    step = _with_trained_head(step)
    start = trained_model(context, step)
    longest = longest_example(step, start)
    rated = _read(step, context, start.tokenizer, longest)
    token = choose_score_token(start.tokenizer, start.spec.vocab_size, rated.tokens)
    rated.tokens = _with_reasoning(step, context, start, rated.tokens)
    held_out = _held_out({prompt for prompt, *_ in [*rated.pairs, *rated.single]})
    before = _accuracy(step, start, rated, held_out, token)
    clear_score(start.model, token)
    groups, unseen = _groups(step, rated, held_out)
    if not groups:
        raise DataError(f"steps.{step.name}.pairs: none is left to learn from; give more")
    if step.train.sequence_length is None:
        longest = max(map(len, rated.tokens))
    unit = "pairs" if isinstance(step.loss, PairwiseLoss) else "answers"
    data = EpochData.of_groups(step, groups, unseen, sequence_length=longest, unit=unit)
    train_epochs(step, context, start, data, RewardObjective(step.loss, token))
    after = _accuracy(step, start, rated, held_out, token)
    counts = {"loss": step.loss.kind, "learned": len(groups), "held_out": before.n, "held_out_prompts": len(held_out)}
    facts = {"score_token": token, "reasoning_tokens": step.reasoning_tokens, **counts}
    write_json(
        context.path(step) / REWARD_FILE, facts | {"before": _accuracy_json(before), "after": _accuracy_json(after)}
    )
    if before.n:
        shares = f"{after.correct} of {after.n} held-out pairs are ranked correctly (before: {before.correct})"
        log_lines(context, [shares])


def _with_trained_head(step: RewardModelStep) -> RewardModelStep:
    """Have an adapter train the head too: the score is the logit of a token that meant nothing before."""
    adapter = step.train.adapter
    if adapter is None or "lm_head" in adapter.modules_to_save:
        return step
    adapter = dataclasses.replace(adapter, modules_to_save=(*adapter.modules_to_save, "lm_head"))
    return dataclasses.replace(step, train=dataclasses.replace(step.train, adapter=adapter))


def _read(step: RewardModelStep, context: StepContext, tokenizer: Tokenizer, longest: int) -> _PreferenceData:
    """Return what every source holds; lines that cannot be used are reported."""
    rated = _PreferenceData([], [], [])
    if step.reasoning_tokens:
        longest -= ReasoningGenerator.token_budget(tokenizer, step.reasoning_tokens)
    for source in step.pairs:
        report = RowReport()
        if isinstance(source, PairFile):
            columns = Columns(source.format, source.fields)
            found = read_preferences(context.plan.data_path(source.path), report, columns)
            _add_pairs(rated, tokenizer, found, report, longest=longest, alone=True)
            log_report(context, source.path, report, "pairs")
            continue
        path = context.path(named_step(context.recipe, step, source.step, AnswersStep, "pairs.step")) / ANSWERS
        judged = subset_of_problems(read_judged(path, report), source.share)
        if not isinstance(step.loss, PairwiseLoss):
            _add_single(rated, tokenizer, judged, report, longest=longest)
            log_report(context, source.step, report, "answers")
            report = RowReport()
        drawn = [as_preference(better, worse) for better, worse in pair_best_with_worst(judged, source.per_problem)]
        _add_pairs(rated, tokenizer, drawn, report, longest=longest, alone=False)
        log_report(context, source.step, report, "pairs")
    return rated


def _add_pairs(
    rated: _PreferenceData,
    tokenizer: Tokenizer,
    preferences: Iterable[Preference],
    report: RowReport,
    *,
    longest: int,
    alone: bool,
) -> None:
    """Add pairs; ``alone`` says that their answers are single ones too, worth 1 and 0."""
    for pair in encode_pairs(tokenizer, preferences, report, max_tokens=longest - 1):
        places = rated.add(pair.chosen.tokens), rated.add(pair.rejected.tokens)
        rated.pairs.append((pair.prompt, *places))
        if alone:
            rated.single += [(pair.prompt, places[0], 1.0), (pair.prompt, places[1], 0.0)]


def _add_single(
    rated: _PreferenceData,
    tokenizer: Tokenizer,
    judged: Sequence[JudgedAnswer],
    report: RowReport,
    *,
    longest: int,
) -> None:
    for answer in judged:
        asked = [{"role": "user", "content": answer.question}]
        try:
            tokens = conversation(tokenizer, asked, answer.answer)
        except DataError as error:
            report.add(RowProblem("template", answer.place, str(error)))
            continue
        if len(tokens) > longest:
            sentence = f"{len(tokens)} tokens exceed {longest}; shorten it, or raise sequence_length"
            report.add(RowProblem("too_long", answer.place, sentence))
            continue
        report.used += 1
        rated.single.append((json.dumps(asked, ensure_ascii=False), rated.add(tokens), answer.total))


def _with_reasoning(
    step: RewardModelStep, context: StepContext, start: LanguageModel, tokens: list[list[int]]
) -> list[list[int]]:
    """Return the conversations with what the model thinks of them; written once and kept beside the checkpoints."""
    if not step.reasoning_tokens:
        return tokens
    reasoning = ReasoningGenerator(sampler=start.engine, tokenizer=start.tokenizer, max_tokens=step.reasoning_tokens)
    key = cache_key(step, context, step.reasoning_tokens, tokens)

    def write() -> dict[str, torch.Tensor]:
        written = reasoning.extend(tokens)
        lengths = torch.tensor([len(sequence) for sequence in written])
        return {"tokens_N": torch.tensor([token for sequence in written for token in sequence]), "lengths_B": lengths}

    found = cached_tensors(context.path(step) / "reasoning.safetensors", key, write)
    parts: Sequence[Any] = torch.split(found["tokens_N"], found["lengths_B"].tolist())
    return [part.tolist() for part in parts]


def _held_out(prompts: set[str]) -> set[str]:
    """Choose a tenth of the prompts by their hashes, and one at least if another is left to learn from."""
    ranked = sorted(prompts, key=lambda prompt: sha256(prompt))
    return set(ranked[: max(1, len(ranked) // HELD_OUT_DIVISOR)]) if len(ranked) > 1 else set()


def _groups(
    step: RewardModelStep, rated: _PreferenceData, held_out: set[str]
) -> tuple[list[tuple[TrainingExample, ...]], list[tuple[TrainingExample, ...]]]:
    """Return what is learned, and what is held out."""
    groups: list[tuple[str, tuple[TrainingExample, ...]]]
    if isinstance(step.loss, PairwiseLoss):
        groups = [
            (prompt, tuple(scoring_example(rated.tokens[place]) for place in places)) for prompt, *places in rated.pairs
        ]
    else:
        groups = [(prompt, (scoring_example(rated.tokens[place], worth),)) for prompt, place, worth in rated.single]
    sides = ([group for prompt, group in groups if (prompt in held_out) is side] for side in (False, True))
    learned, unseen = sides
    return learned, unseen


def _accuracy(
    step: RewardModelStep, model: LanguageModel, rated: _PreferenceData, held_out: set[str], token: int
) -> Accuracy:
    found = [places for prompt, *places in rated.pairs if prompt in held_out]
    sequences = [rated.tokens[place] for places in found for place in places]
    dtype = resolve_precision(step.train, model.model.device)
    scores = score(model.model, sequences, score_token=token, dtype=dtype)
    return Accuracy.of(better > worse for better, worse in zip(scores[::2], scores[1::2], strict=True))


def _accuracy_json(accuracy: Accuracy) -> dict[str, Any] | None:
    if not accuracy.n:
        return None
    low, high = accuracy.interval
    return {"accuracy": accuracy.value, "low": low, "high": high, "n": accuracy.n}
