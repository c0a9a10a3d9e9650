"""The dpo step: direct preference optimization against the model it starts from."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch

from fathom.checkpoint.tensor_cache import cached_tensors
from fathom.data.forms import Columns
from fathom.data.row_report import RowReport
from fathom.errors import DataError
from fathom.files import write_bytes
from fathom.inference.language_model import LanguageModel
from fathom.locale import tr
from fathom.pipeline.context import StepContext, named_step
from fathom.pipeline.run_models import trained_model
from fathom.pipeline.steps.epoch_training import (
    HELD_OUT,
    EpochData,
    cache_key,
    hold_out,
    log_report,
    longest_example,
    train_epochs,
)
from fathom.posttrain.preferences import (
    PreferenceObjective,
    PreferencePair,
    encode_pairs,
    pair_best_with_worst,
    pair_groups,
    pairs_from_token_ids,
    read_judged,
    read_preferences,
    reference_logprobs,
    subset_of_problems,
)
from fathom.spec.alignment import DpoStep, PairFile
from fathom.spec.answering import AnswersStep
from fathom.tokenizer import Tokenizer
from fathom.train.step import resolve_precision

ANSWERS = "answers.jsonl"
REFERENCE_FILE = "reference.safetensors"


def run(step: DpoStep, context: StepContext) -> None:
    """Train in ``context.path(step)``, from the latest checkpoint there if there is one.

    The reference's log-probabilities are computed once, before the first step, and kept beside the checkpoints.
    """
    start = trained_model(context, step)
    longest = longest_example(step, start)
    pairs = read_pairs(step, context, start.tokenizer, longest)
    held_out, validation = _validation(step, context, start.tokenizer, longest, pairs)
    learned = [pair for pair in pairs if pair.key not in held_out]
    if not learned:
        raise DataError(f"steps.{step.name}.train.validation: holds out all there is to learn; add pairs of others")
    if step.train.sequence_length is None:
        longest = max(pair.length for pair in (*pairs, *validation))
    every = [*learned, *validation]
    path = context.path(step) / REFERENCE_FILE
    lengths = [len(sample.tokens) - 1 for pair in every for sample in (pair.chosen, pair.rejected)]
    precision = resolve_precision(step.train, start.model.device)
    key = cache_key(step, context, precision, context.device, every)
    found = cached_tensors(path, key, lambda: {"logprobs_N": _reference(step, start, every)})
    groups = pair_groups(every, torch.split(found["logprobs_N"], lengths))
    data = EpochData.of_groups(
        step, groups[: len(learned)], groups[len(learned) :], sequence_length=longest, unit="pairs"
    )
    train_epochs(step, context, start, data, PreferenceObjective(step.loss, step.train.loss_chunk_tokens))


def read_pairs(step: DpoStep, context: StepContext, tokenizer: Tokenizer, longest: int) -> list[PreferencePair]:
    """Return the pairs of all sources, those of an ``answers`` step as the very tokens that were drawn.

    Raises:
        DataError: a source cannot be read, or no pair can be used.
    """
    pairs: list[PreferencePair] = []
    for source in step.pairs:
        if isinstance(source, PairFile):
            pairs += _read_file(source, context, tokenizer, longest)
            continue
        report = RowReport()
        answers = named_step(context.recipe, step, source.step, AnswersStep, "pairs.step")
        judged = read_judged(context.path(answers) / ANSWERS, report)
        found = pair_best_with_worst(subset_of_problems(judged, source.share), source.per_problem)
        pairs += pairs_from_token_ids(found, report, max_tokens=longest)
        log_report(context, source.step, report, "pairs")
    if not pairs:
        raise DataError(f"steps.{step.name}.pairs: none can be used; the lines above say why")
    return pairs


def _read_file(source: PairFile, context: StepContext, tokenizer: Tokenizer, longest: int) -> list[PreferencePair]:
    report, columns = RowReport(), Columns(source.format, source.fields)
    preferences = read_preferences(context.plan.data_path(source.path), report, columns)
    pairs = encode_pairs(tokenizer, preferences, report, max_tokens=longest)
    log_report(context, source.path, report, "pairs")
    return pairs


def _validation(
    step: DpoStep, context: StepContext, tokenizer: Tokenizer, longest: int, pairs: Sequence[PreferencePair]
) -> tuple[frozenset[int], list[PreferencePair]]:
    """Return the keys of the prompts that training leaves out, and the pairs to validate on, which are kept beside."""
    spec = step.train.validation
    if spec.path is not None:
        file = PairFile(path=spec.path, format=spec.format, fields=spec.fields)
        validation = _read_file(file, context, tokenizer, longest)
        held_out = frozenset(pair.key for pair in validation)
    else:
        held_out = hold_out(step, (pair.key for pair in pairs))
        validation = [pair for pair in pairs if pair.key in held_out]
    if validation:
        context.progress.message(tr("{count} pairs are held out to validate on", count=len(validation)))
        rows = {pair.key: {"messages": pair.conversation} for pair in validation}.values()
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_bytes(context.path(step) / HELD_OUT, lines.encode(errors="replace"))
    return held_out, validation


def _reference(step: DpoStep, start: LanguageModel, pairs: list[PreferencePair]) -> torch.Tensor:
    dtype = resolve_precision(step.train, start.model.device)
    return torch.cat(reference_logprobs(start.model, pairs, chunk_tokens=step.train.loss_chunk_tokens, dtype=dtype))
