"""How a run's stages answer held-out problems greedily: left to themselves, thinking opened for them, and closed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from fathom.data.problems import open_problems
from fathom.inference.answer_sampling import sample_answers
from fathom.inference.language_model import LanguageModel
from fathom.inference.run_record import read_recipe
from fathom.posttrain.prompts import PromptFormatter
from fathom.posttrain.rewards.accuracy import AccuracyScorer
from fathom.posttrain.rewards.base import RewardInput
from fathom.spec.recipe import TasksStep
from fathom.spec.rollout import ChatPrompt, ThinkingMode

run, stages = Path(sys.argv[1]), sys.argv[2:]
asking = next(step for step in read_recipe(run).steps if isinstance(step, TasksStep))
scorer = AccuracyScorer("exact")
modes: tuple[ThinkingMode, ...] = ("free", "open", "closed")
print(f"{'right, %':20}" + "".join(f"{stage + ' ' + mode:>16}" for stage in stages for mode in modes))
models = {stage: LanguageModel.open(run / stage, dtype="float32") for stage in stages}
for source in asking.problems:
    problems = open_problems(source).problems("held_out", 0, asking.count)
    row = f"{source.name:20}"
    for model in models.values():
        for mode in modes:
            step = replace(asking, samples=1, temperature=0.0, prompt=ChatPrompt(thinking=mode))
            drawn = list(sample_answers(model, PromptFormatter(model.tokenizer, step.prompt), problems, step))
            answers = [RewardInput(prompt="", answer=each.text, problem=problems[each.index]) for each in drawn]
            row += f"{100 * sum(scorer.score(answer) or 0.0 for answer in answers) / len(answers):16.1f}"
    print(row)
