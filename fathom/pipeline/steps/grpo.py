"""The grpo step: a policy learns from its own answers, drawn by the engine from the very weights that change."""

from __future__ import annotations

from fathom.checkpoint import store
from fathom.model.device import resolve_device
from fathom.pipeline.context import StepContext, model_step
from fathom.pipeline.learned import check_learned
from fathom.pipeline.reward_functions import open_judge
from fathom.pipeline.rollouts import questions, rollout_engine
from fathom.pipeline.run_models import adapter_base, initial_tokenizer_files, open_step
from fathom.posttrain.grpo import PolicyTrainer
from fathom.posttrain.prompts import PromptFormatter
from fathom.spec.recipe import GrpoStep


def run(step: GrpoStep, context: StepContext) -> None:
    """Learn in ``context.path(step)``, from the latest checkpoint there if there is one."""
    model = open_step(
        context, model_step(context.recipe, step), engine=rollout_engine(step.policy, resolve_device(context.device))
    )
    model.model.requires_grad_(True)
    directory = context.path(step)
    with open_judge(context, step, step.rewards, seconds=step.reward_timeout_seconds) as judge:
        PolicyTrainer(
            model.model,
            step.policy,
            model.engine,
            PromptFormatter(model.tokenizer, step.policy.rollout.prompt),
            questions(context, step.problems, step.policy.seed),
            directory,
            judge=judge.judge,
            progress=context.progress,
            files=initial_tokenizer_files(context, step),
            base=adapter_base(context, step, step.policy),
            tracking=context.tracking(step),
        ).run(resume=store.latest(directory / store.CHECKPOINTS) is not None, allow_changes=True)
    check_learned(step, directory, context.progress)
