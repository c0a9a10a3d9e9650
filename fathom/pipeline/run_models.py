"""Models of a run: the initial model of a train step, and the models that steps leave."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fathom.checkpoint import store
from fathom.checkpoint.adapter_checkpoint import AdapterBase
from fathom.checkpoint.hf.files import TOKENIZER_FILES
from fathom.checkpoint.weights import load_weights
from fathom.errors import CheckpointError, SpecError
from fathom.inference.language_model import LanguageModel
from fathom.inference.loading import find_checkpoint, open_source
from fathom.inference.run_record import last_before
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.model.device import resolve_device
from fathom.pipeline.context import (
    StepContext,
    TokenizerSource,
    init_step,
    kind_name,
    model_step,
    previous_model,
    spec_during,
    train_chain,
    with_extended_context,
)
from fathom.spec.engine import EngineSpec
from fathom.spec.model import ModelSpec
from fathom.spec.recipe import ModelStep, OpenStep, StartingStep, Step, TokenizerStep, TrainStep
from fathom.spec.train import UpdateSpec
from fathom.tokenizer.bpe import Tokenizer


def run_tokenizer(context: StepContext, step: Step) -> Tokenizer:
    """Return the tokenizer of the run as ``step`` sees it: that of the last tokenizer or open step before."""
    return Tokenizer.load(_tokenizer_directory(context, step))


def run_tokenizer_files(context: StepContext, step: Step) -> list[Path]:
    """Return the files of the run's tokenizer as ``step`` sees it."""
    return _tokenizer_files(_tokenizer_directory(context, step))


def step_spec(context: StepContext, step: Step, tokenizer: Tokenizer) -> ModelSpec:
    """Return the model's spec during ``step``; token ids it leaves open are the tokenizer's.

    Raises:
        SpecError: the tokenizer has more tokens than the model.
    """
    spec, source = spec_during(context.recipe, step), init_step(context.recipe, step)
    if spec is None:
        assert source is not None
        spec = with_extended_context(context.recipe, step, open_source(context.path(source)).spec)
    if tokenizer.vocab_size > spec.vocab_size:
        problem = f"the tokenizer's {tokenizer.vocab_size} exceeds model.vocab_size {spec.vocab_size}"
        raise SpecError(f"steps.{step.name}", problem, "make them equal")
    return dataclasses.replace(
        spec,
        bos_token_id=tokenizer.bos_id if spec.bos_token_id is None else spec.bos_token_id,
        eos_token_id=tokenizer.eos_id if spec.eos_token_id is None else spec.eos_token_id,
        pad_token_id=tokenizer.pad_id if spec.pad_token_id is None else spec.pad_token_id,
    )


def initial_model(context: StepContext, step: Step, tokenizer: Tokenizer) -> Decoder:
    """Build the random model that was trained up to ``step``, as drawn at first, with the spec it has now."""
    first = train_chain(context.recipe, step)[0]
    spec = step_spec(context, step, tokenizer)
    return build(spec, device=resolve_device(context.device), seed=first.train.seed)


def build_initial_model(context: StepContext, step: TrainStep, tokenizer: Tokenizer) -> Decoder:
    """Build the initial model of a train step, with the weights of the step it continues or random ones.

    Raises:
        SpecError: the model cannot read sequences as long as the step's.
    """
    model = initial_model(context, step, tokenizer)
    longest, context_length = step.train.sequence_length, model.spec.max_position_embeddings
    if longest > context_length:
        problem = f"{longest} exceeds the context of {context_length}"
        remedy = "shorten it or set max_position_embeddings"
        raise SpecError(f"steps.{step.name}.train.sequence_length", problem, remedy)
    previous = previous_model(context.recipe, step)
    if previous is not None:
        if store.latest(context.path(previous) / store.CHECKPOINTS) is None:
            raise CheckpointError(f"{context.path(previous)}: holds no checkpoint; --restart the run")
        load_weights(model, open_source(context.path(previous)))
    elif step.train.adapter is not None:
        problem = "trains on a model, and this step begins with random weights"
        raise SpecError(f"steps.{step.name}.train.adapter", problem, "leave it out, or start from an open step")
    return model


def adapter_base(context: StepContext, step: Step, train: UpdateSpec) -> AdapterBase | None:
    """Return where the weights are that a step's adapter is trained on, or None where it trains none."""
    if train.adapter is None:
        return None
    recipe = context.recipe
    before = previous_model(recipe, step) if isinstance(step, TrainStep) else model_step(recipe, step)
    return None if before is None else AdapterBase.of(before.name, find_checkpoint(context.path(before)))


def trained_model(context: StepContext, step: Step) -> LanguageModel:
    """Open the model of the train step before ``step``."""
    return open_step(context, model_step(context.recipe, step))


def open_step(
    context: StepContext, step: ModelStep, *, engine: EngineSpec | None = None, template: str | None = None
) -> LanguageModel:
    """Open the model that a step left, in float32; to change its weights, let them take gradients.

    ``template`` takes the place of its chat template.
    """
    return LanguageModel.open(
        context.path(step),
        device=context.device,
        dtype="float32",
        weights="plain",
        engine=engine,
        chat_template=template,
    )


def initial_tokenizer_files(context: StepContext, step: StartingStep) -> list[Path]:
    """Return the tokenizer's files of the checkpoint that a step begins with."""
    found = find_checkpoint(context.path(model_step(context.recipe, step)))
    own = _tokenizer_files(found)
    if own or last_before(context.recipe, step, TokenizerSource) is None:
        return own
    return run_tokenizer_files(context, step)


def beside_recipe(context: StepContext, model: str) -> str | Path:
    """Return a model's name or path; a path leads from the recipe's folder where there is something."""
    beside = context.plan.base / model
    return beside if beside.exists() else model


def _tokenizer_directory(context: StepContext, step: Step) -> Path:
    found: TokenizerStep | OpenStep | None = last_before(context.recipe, step, TokenizerSource)
    if found is None:
        raise SpecError(
            f"steps.{step.name}", f"needs a {kind_name(TokenizerSource)} step before it", "add one to the recipe"
        )
    return find_checkpoint(context.path(found)) if isinstance(found, OpenStep) else context.path(found)


def _tokenizer_files(directory: Path) -> list[Path]:
    return [directory / name for name in TOKENIZER_FILES if (directory / name).is_file()]
