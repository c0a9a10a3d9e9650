"""The reward models that a recipe trained, as the judge of a later step asks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fathom.errors import CheckpointError, SpecError
from fathom.inference.language_model import LanguageModel
from fathom.inference.run_record import read_json
from fathom.pipeline.context import StepContext, named_step
from fathom.pipeline.run_models import open_step
from fathom.posttrain.reward_model import ReasoningGenerator, make_score_fn, make_step_score_fn
from fathom.posttrain.rewards.judge import ScoreFn
from fathom.spec.alignment import RewardModelStep
from fathom.spec.recipe import Step
from fathom.spec.rewards import ModelReward, RewardSpec

REWARD_FILE = "reward.json"


def external_scorers(context: StepContext, step: Step, rewards: Sequence[RewardSpec]) -> Mapping[str, ScoreFn]:
    """Open the reward model of each ``ModelReward``, in float32: what ``Judge`` takes as ``external``.

    Raises:
        SpecError: a reward names no reward_model step before ``step``, or asks for other reasoning than it learned.
    """
    asked = [reward for reward in rewards if isinstance(reward, ModelReward)]
    return {reward.name: _open(context, step, reward) for reward in asked}


def _open(context: StepContext, step: Step, reward: ModelReward) -> ScoreFn:
    made = named_step(context.recipe, step, reward.step, RewardModelStep, "rewards.step")
    if bool(made.reasoning_tokens) != bool(reward.reasoning_tokens):
        raise SpecError(
            f"steps.{step.name}.rewards.{reward.name}.reasoning_tokens",
            f"is {reward.reasoning_tokens}, but step {made.name!r} learned to score after {made.reasoning_tokens}",
            "reason in both or in neither",
        )
    model = open_step(context, made)
    reasoning = None
    if reward.reasoning_tokens:
        reasoning = ReasoningGenerator(
            sampler=model.engine, tokenizer=model.tokenizer, max_tokens=reward.reasoning_tokens
        )
    token = _score_token(context.path(made) / REWARD_FILE, model)
    if reward.steps:
        return make_step_score_fn(model.model, model.tokenizer, score_token=token)
    return make_score_fn(model.model, model.tokenizer, score_token=token, reasoning=reasoning)


def _score_token(path: Path, model: LanguageModel) -> int:
    document = read_json(path)
    token = document.get("score_token") if isinstance(document, dict) else None
    if type(token) is not int or not 0 <= token < model.spec.vocab_size:
        raise CheckpointError(f"{path}: score_token {token!r} is no token of the model; --restart the run")
    return token
