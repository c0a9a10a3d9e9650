"""The dpo step: direct preference optimization against the model it starts from."""

from __future__ import annotations

import torch

from fathom.checkpoint.tensor_cache import cached_tensors
from fathom.data.forms import Columns
from fathom.data.row_report import RowReport
from fathom.errors import DataError
from fathom.inference.language_model import LanguageModel
from fathom.pipeline.context import StepContext, named_step
from fathom.pipeline.run_models import trained_model
from fathom.pipeline.steps.epoch_training import cache_key, log_report, train_epochs
from fathom.posttrain.preferences import (
    GroupLoader,
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
    pairs = read_pairs(step, context, start.tokenizer)
    path = context.path(step) / REFERENCE_FILE
    lengths = [len(sample.tokens) - 1 for pair in pairs for sample in (pair.chosen, pair.rejected)]
    key = cache_key(step, context, step.train.precision, context.device, pairs)
    found = cached_tensors(path, key, lambda: {"logprobs_N": _reference(step, start, pairs)})
    reference = torch.split(found["logprobs_N"], lengths)
    loader = GroupLoader(
        pair_groups(pairs, reference), sequence_length=step.train.sequence_length, seed=step.train.seed
    )
    train_epochs(step, context, start, loader, PreferenceObjective(step.loss, step.train.loss_chunk_tokens))


def read_pairs(step: DpoStep, context: StepContext, tokenizer: Tokenizer) -> list[PreferencePair]:
    """Return the pairs of all sources, those of an ``answers`` step as the very tokens that were drawn.

    Raises:
        DataError: a source cannot be read, or no pair can be used.
    """
    pairs: list[PreferencePair] = []
    for source in step.pairs:
        report, longest = RowReport(), step.train.sequence_length
        if isinstance(source, PairFile):
            columns = Columns(source.format, source.fields)
            name, preferences = source.path, read_preferences(context.plan.data_path(source.path), report, columns)
            pairs += encode_pairs(tokenizer, preferences, report, max_tokens=longest)
        else:
            answers = named_step(context.recipe, step, source.step, AnswersStep, "pairs.step")
            name, judged = source.step, read_judged(context.path(answers) / ANSWERS, report)
            found = pair_best_with_worst(subset_of_problems(judged, source.share), source.per_problem)
            pairs += pairs_from_token_ids(found, report, max_tokens=longest)
        log_report(context, name, report, "pairs")
    if not pairs:
        raise DataError(f"steps.{step.name}.pairs: none can be used; the lines above say why")
    return pairs


def _reference(step: DpoStep, start: LanguageModel, pairs: list[PreferencePair]) -> torch.Tensor:
    dtype = resolve_precision(step.train, start.model.embed_tokens.weight.device)
    return torch.cat(reference_logprobs(start.model, pairs, chunk_tokens=step.train.loss_chunk_tokens, dtype=dtype))
