"""The distill step: a student learns from a teacher's distribution at the tokens that it draws itself."""

from __future__ import annotations

from fathom.checkpoint import store
from fathom.errors import SpecError
from fathom.inference.language_model import LanguageModel
from fathom.model.device import resolve_device
from fathom.pipeline.context import StepContext, model_step, taught_by
from fathom.pipeline.learned import check_learned
from fathom.pipeline.rollouts import questions, rollout_engine
from fathom.pipeline.run_models import adapter_base, beside_recipe, initial_tokenizer_files, open_step
from fathom.posttrain.distill import DistillTrainer
from fathom.posttrain.prompts import PromptFormatter
from fathom.spec.recipe import DistillStep


def run(step: DistillStep, context: StepContext) -> None:
    """Learn in ``context.path(step)``, from the latest checkpoint there if there is one."""
    student = open_step(
        context, model_step(context.recipe, step), engine=rollout_engine(step.policy, resolve_device(context.device))
    )
    teacher = open_teacher(step, context)
    if teacher.tokenizer.fingerprint != student.tokenizer.fingerprint:
        raise SpecError(
            f"steps.{step.name}.teacher",
            f"{step.teacher} reads text by another tokenizer than the student",
            "use a teacher with the student's tokenizer, or learn from its texts by an answers and an sft step",
        )
    student.model.requires_grad_(True)
    directory = context.path(step)
    DistillTrainer(
        student.model,
        step.policy,
        student.engine,
        PromptFormatter(student.tokenizer, step.policy.rollout.prompt),
        questions(context, step.problems, step.policy.seed),
        directory,
        teacher=teacher.model,
        progress=context.progress,
        files=initial_tokenizer_files(context, step),
        base=adapter_base(context, step, step.policy),
        tracking=context.tracking(step),
    ).run(resume=store.latest(directory / store.CHECKPOINTS) is not None, allow_changes=True)
    check_learned(step, directory, context.progress)


def open_teacher(step: DistillStep, context: StepContext) -> LanguageModel:
    """Open the teacher in float32: the step of that name, or else what ``fathom.load`` opens by it.

    A path is taken from the recipe's folder where it leads somewhere from there.
    """
    named = taught_by(context.recipe, step)
    if named is not None:
        return open_step(context, named)
    return LanguageModel.open(
        beside_recipe(context, step.teacher),
        device=context.device,
        dtype="float32",
        weights="plain",
        progress=context.progress,
        cache_dir=context.cache_dir,
    )
