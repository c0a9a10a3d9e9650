"""The train step: one stage of training, from random weights or those of the train step before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fathom.checkpoint import store
from fathom.data.image_text import ImageTextFile, ImageTextLoader
from fathom.data.loader import NeedleMixture, PackedLoader
from fathom.data.shards import open_shards
from fathom.data.synthetic_images import PAIR_FILES
from fathom.errors import SpecError
from fathom.inference.held_out import bits_by_source
from fathom.model.decoder import Decoder
from fathom.pipeline.context import StepContext
from fathom.pipeline.learned import check_learned
from fathom.pipeline.run_models import adapter_base, build_initial_model, run_tokenizer, run_tokenizer_files
from fathom.pipeline.text_checks import check_text
from fathom.spec.recipe import CorpusStep, ImageText, PicturesStep, ShardsStep, TrainStep
from fathom.spec.vision import VisionSpec
from fathom.tokenizer.bpe import Tokenizer
from fathom.train.loop import Trainer
from fathom.train.parts import RankLoader

EVALUATION_TOKENS = 2048
"""Held-out tokens of each source that an evaluation during training measures."""


def run(step: TrainStep, context: StepContext) -> None:
    """Train in ``context.path(step)``, from the latest checkpoint there if there is one."""
    tokenizer = run_tokenizer(context, step)
    check_text(step, context, tokenizer)
    model = build_initial_model(context, step, tokenizer)
    shards = open_shards(context.path(context.before(step, ShardsStep)), "train", tokenizer)
    sources = context.plan.manifests[context.before(step, CorpusStep).name].sources
    text = PackedLoader(
        shards,
        {source.name: source.weight for source in sources},
        step.train.sequence_length,
        step.train.seed,
        NeedleMixture(tokenizer, step.needle_fraction) if step.needle_fraction else None,
    )
    vision = model.spec.vision
    loader = text if step.images is None else _with_images(step, step.images, vision, context, text, tokenizer)
    directory, group = context.path(step), context.group(model)
    trainer = Trainer(
        model,
        step.train,
        RankLoader(loader, group),
        directory,
        evaluate=_evaluation(step, context, tokenizer),
        progress=context.progress,
        bytes_per_token=loader.bytes_per_token,
        tracking=context.tracking(step),
        files=run_tokenizer_files(context, step),
        base=adapter_base(context, step, step.train),
        group=group,
    )
    trainer.run(resume=store.latest(directory / store.CHECKPOINTS) is not None, allow_changes=True)
    if group.leads:
        check_learned(step, directory, context.progress)


def _with_images(
    step: TrainStep,
    images: ImageText,
    vision: VisionSpec | None,
    context: StepContext,
    text: PackedLoader,
    tokenizer: Tokenizer,
) -> ImageTextLoader:
    if vision is None:
        raise SpecError(f"steps.{step.name}.images", "the model sees no images", "start from one that does")
    if images.pairs is None:
        file = context.path(context.before(step, PicturesStep)) / PAIR_FILES["train"]
    else:
        file = context.plan.base / images.pairs
    return ImageTextLoader(
        ImageTextFile.open(file),
        text if images.fraction < 1 or images.warmup else None,
        tokenizer=tokenizer,
        vision=vision,
        sequence_length=step.train.sequence_length,
        seed=step.train.seed,
        fraction=images.fraction,
        warmup_tokens=round(images.warmup * step.train.total_tokens),
    )


def _evaluation(
    step: TrainStep, context: StepContext, tokenizer: Tokenizer
) -> Callable[[Decoder], Mapping[str, float]]:
    held_out = open_shards(context.path(context.before(step, ShardsStep)), "held_out", tokenizer)

    def evaluate(model: Decoder) -> Mapping[str, float]:
        results = bits_by_source(
            model,
            tokenizer,
            held_out,
            max_tokens=EVALUATION_TOKENS,
            context=step.train.sequence_length,
            overlap=False,
        )
        return {source: result.value for source, result in results.items()}

    return evaluate
