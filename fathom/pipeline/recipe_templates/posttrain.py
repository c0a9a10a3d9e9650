"""Recipes that teach an existing model: fine-tuning, preferences, reinforcement learning and distillation."""

from __future__ import annotations

import math
from pathlib import Path

from fathom.data.problems.files import open_file
from fathom.errors import DataError, SpecError
from fathom.pipeline.forecast.models import local_source
from fathom.pipeline.forecast.pace import training_pace, training_peak
from fathom.pipeline.forecast.sampling_pace import ANSWER_SHARE, sampling_pace
from fathom.pipeline.forecast.text_size import RowsSize, row_tokens, rows_size
from fathom.pipeline.recipe_templates.request import Request
from fathom.pipeline.recipe_templates.toml_text import lines, value
from fathom.pipeline.rollouts import rollout_engine
from fathom.plan.count import count_parameters, short_count
from fathom.spec.model import ModelSpec
from fathom.spec.problem import FileProblems
from fathom.spec.rollout import OnlineSpec, RolloutSpec
from fathom.spec.train import AdamWSpec, UpdateSpec

_EPOCHS = 3.0
_FEWEST_STEPS = 30
_QUESTIONS, _GROUP, _ANSWER_TOKENS = 8, 8, 64
_MEASURED = 50


def finetune(request: Request) -> str:
    """Return a recipe that fine-tunes a model on conversations."""
    return _on_rows(request, "sft", "data", "conversations", "Fine-tuning on your own conversations")


def dpo(request: Request) -> str:
    """Return a recipe that teaches a model preferences between pairs of answers."""
    return _on_rows(request, "dpo", "pairs", "pairs of answers", "Direct preference optimization on your own pairs")


def grpo(request: Request) -> str:
    """Return a recipe that lets a model learn from its own answers to problems."""
    spec = _spec(request, "--model", request.model)
    rollouts, basis = _rollouts(request, spec)
    fields = {
        "rollouts": rollouts,
        "optimizer": {"lr": _rate(spec) / 10, "weight_decay": 0.0, "beta2": 0.99},
        "schedule": {"kind": "constant", "warmup_fraction": 0.05},
        "loss": {"clip_high": 0.28},
        "checkpoint": {"every_seconds": 120.0, "keep": 1},
        "rollout": _rollout(request, _QUESTIONS, _GROUP),
    }
    why = {
        "rollouts": f"as many as about {request.time} hold here (pace {basis})",
        "optimizer": "a tenth of the rate of fine-tuning",
        "loss": "rare right answers may grow faster than they shrink",
        "checkpoint": "an interruption loses two minutes at most",
        "rollout": "answers drawn to each question; what is better than its group's mean is learned",
    }
    return f"""{_head(request, "Reinforcement learning (GRPO) on problems with answers", spec)}
{_problems(request)}
[[steps]] # the model to begin with; called base
kind = "open"
model = {_model(request, request.model)}

[[steps]]
kind = "grpo"
problems = ["own"]
# Right answers are rewarded. A function NAME of your own, in rewards.py beside this file, is
# {{ kind = "function", target = "rewards:NAME" }}.
rewards = [{{ kind = "accuracy" }}]

[steps.policy]
{lines(fields, why)}

{_measured(["base", "grpo"], request)}"""


def distill(request: Request) -> str:
    """Return a recipe in which a small model learns from a larger one, on answers of its own."""
    spec = _spec(request, "--model", request.model)
    taught = _spec(request, "--teacher", request.teacher)
    if spec.vocab_size != taught.vocab_size:
        problem = f"has a vocabulary of {taught.vocab_size}, the student's has {spec.vocab_size}"
        raise SpecError("--teacher", problem, "take a teacher and a student of one tokenizer")
    share = count_parameters(taught).active / count_parameters(spec).active
    rollouts, basis = _rollouts(request, spec, other_passes=share / 3)
    fields = {
        "rollouts": rollouts,
        "optimizer": {"lr": _rate(spec) / 3, "weight_decay": 0.0},
        "schedule": {"kind": "cosine", "warmup_fraction": 0.05},
        "loss": {"divergence": "reverse_kl"},
        "checkpoint": {"every_seconds": 120.0, "keep": 1},
        "rollout": _rollout(request, _QUESTIONS * _GROUP, 1),
    }
    why = {
        "rollouts": f"as many as about {request.time} hold here (pace {basis})",
        "optimizer": "a third of the rate of fine-tuning",
        "schedule": "a short warm-up, then a half cosine",
        "loss": "the student keeps to what its teacher finds likely",
        "rollout": "the student answers, the teacher judges every token",
    }
    return f"""{_head(request, "On-policy distillation: a student answers, and its teacher judges every token", spec)}
{_problems(request)}
[[steps]]
kind = "open"
name = "teacher"
model = {_model(request, request.teacher)}

[[steps]]
kind = "open"
name = "student"
model = {_model(request, request.model)}

[[steps]]
kind = "distill"
start = "student"
teacher = "teacher"
problems = ["own"]

[steps.policy]
{lines(fields, why)}

{_measured(["teacher", "student", "distill"], request)}"""


def _on_rows(request: Request, kind: str, field: str, what: str, title: str) -> str:
    """Return a recipe of one step that passes over the rows of a data file."""
    request.required("--data", request.data)
    assert request.data is not None
    spec = _spec(request, "--model", request.model)
    rows = rows_size(request.data)
    if not rows.rows:
        raise DataError(f"--data: {request.data} has no rows; name a file of {what}")
    tokens = rows.rows * row_tokens(rows.characters)
    epochs, basis = _epochs(request, spec, tokens, _length(rows, spec))
    unit = "pairs" if kind == "dpo" else "conversations"
    size = 1
    while size < 16 and epochs * rows.rows / (2 * size) >= _FEWEST_STEPS:
        size *= 2
    train = {
        "epochs": epochs,
        "batch": {unit: size},
        "optimizer": {"lr": _rate(spec) / (10 if kind == "dpo" else 1)},
        "schedule": {"kind": "cosine", "warmup_fraction": 0.05, "final": 0.1},
        "checkpoint": {"every_seconds": 120.0, "keep": 1},
        "log_every_steps": 1,
    }
    why = {
        "epochs": f"passes over about {short_count(round(tokens))} tokens, within about {request.time} (pace {basis})",
        "batch": f"{unit} a step, for at least {_FEWEST_STEPS} steps where there are as many",
        "optimizer": "smaller models take larger rates",
        "schedule": "a short warm-up, then a half cosine down to a tenth",
        "checkpoint": "an interruption loses two minutes at most",
    }
    return f"""{_head(request, title, spec)}

[[steps]] # the model to begin with; called base
kind = "open"
model = {_model(request, request.model)}

[[steps]]
kind = {value(kind)}
{field} = [{{ kind = "file", path = {value(request.written(request.data))} }}] # {rows.rows} {what}

[steps.train]
{lines(train, why)}

[[steps]]
kind = "report"
"""


def _head(request: Request, title: str, spec: ModelSpec) -> str:
    return f"""# {title}: {request.model or spec.name}, {short_count(count_parameters(spec).total)} parameters.
# Sized for about {request.time} on this machine.
#
#     fathom recipe check {request.file}
#     fathom train {request.file} --out runs/{request.name}
name = {value(request.name)}"""


def _measured(stages: list[str], request: Request) -> str:
    held = _held_out(request)
    if not held:
        return """# No problem is held out, so nothing is measured: give some rows a column split = "held_out".

[[steps]]
kind = "report"
"""
    all_held = {"count": 'all that are held out; for more, give rows a column split = "held_out"'}
    return f"""[[steps]] # how many problems each model answers rightly; none of them was learned from
kind = "tasks"
problems = ["own"]
stages = {value(stages)}
{lines({"count": min(_MEASURED, held)}, all_held if held < _MEASURED else {})}
max_tokens = {_ANSWER_TOKENS}
prompt = {value(_prompt(request))}

[[steps]]
kind = "report"
"""


def _problems(request: Request) -> str:
    if request.problems is not None:
        return f"""
[problems.own]
kind = "problems"
path = {value(request.written(request.problems))}
"""
    return """
[problems.own] # sums of two small numbers; reasoning-gym has many further data sets
kind = "reasoning_gym"
dataset = "chain_sum"
options = { min_terms = 2, max_terms = 2, min_digits = 1, max_digits = 1 }
"""


def _held_out(request: Request) -> int:
    """Return how many problems measure the model, and none of them are learned from."""
    if request.problems is None:
        return _MEASURED
    found = open_file(FileProblems(name="own", path=str(request.problems.resolve())), Path())
    if not found.size("train"):
        raise DataError(f"--problems: {request.problems} has no problem to learn from; give rows a column split")
    return found.size("held_out") or 0


def _rollout(request: Request, questions: int, group: int) -> dict[str, object]:
    sizes = {"questions": questions, "group_size": group, "max_tokens": _ANSWER_TOKENS}
    return {**sizes, "prompt": _prompt(request)}


def _prompt(request: Request) -> dict[str, str]:
    """Return how a model is asked: by its chat template where it has one."""
    source = local_source(Path(), str(request.model), request.cache_dir)
    tokenizer = None if source is None else source.tokenizer()
    if tokenizer is not None and not tokenizer.can_chat:
        return {"kind": "text"}
    return {"kind": "chat", "thinking": "free"}


def _spec(request: Request, option: str, name: str | None) -> ModelSpec:
    request.required(option, name)
    source = local_source(Path(), str(name), request.cache_dir)
    if source is None:
        raise SpecError(option, f"{name} is not on this machine yet", f"fetch it first: fathom inspect {name}")
    return source.spec


def _model(request: Request, name: str | None) -> str:
    path = Path(str(name)).expanduser()
    return value(request.written(path) if path.exists() else str(name))


def _rate(spec: ModelSpec) -> float:
    """Return a rate of fine-tuning: 2e-5 for seven billion parameters, more for fewer, at most 1e-3."""
    found = 2e-5 * math.sqrt(7e9 / count_parameters(spec).active_with_embedding)
    return float(f"{min(1e-3, max(1e-5, found)):.1e}")


def _length(rows: RowsSize, spec: ModelSpec) -> int:
    wanted = 64
    while wanted < 1.3 * round(row_tokens(rows.longest)):
        wanted *= 2
    return min(spec.max_position_embeddings, 2048, wanted)


def _epochs(request: Request, spec: ModelSpec, tokens: float, length: int) -> tuple[float, str]:
    """Return the passes that the time holds, at most ``_EPOCHS``, and how the pace is known."""
    train, peak = UpdateSpec(optimizer=AdamWSpec(lr=_rate(spec))), training_peak(request.device)
    pace = training_pace(spec, train, sequences=1, length=length, device=request.device, peak=peak)
    if pace is None:
        return _EPOCHS, "unknown"
    seconds = pace.seconds(tokens, tokens / length)
    held = min(_EPOCHS, request.seconds / max(seconds, 1e-9))
    return float(f"{held:.2g}"), "measured" if pace.measured else "estimated"


def _rollouts(request: Request, spec: ModelSpec, *, other_passes: float = 0.0) -> tuple[int, str]:
    """Return how many rollouts the time holds; ``other_passes`` of other models count in passes of training."""
    asked = RolloutSpec(questions=_QUESTIONS, group_size=_GROUP, max_tokens=_ANSWER_TOKENS)
    policy = OnlineSpec(rollouts=1, rollout=asked, optimizer=AdamWSpec(lr=_rate(spec)))
    length = min(2 * _ANSWER_TOKENS, spec.max_position_embeddings)
    peak = training_peak(request.device)
    pace = training_pace(spec, policy, sequences=8, length=length, device=request.device, peak=peak)
    drawing = sampling_pace(spec, rollout_engine(policy, request.device), device=request.device, peak=peak)
    if pace is None or drawing is None:
        return 50, "unknown"
    drawn = _QUESTIONS * _GROUP * _ANSWER_TOKENS * ANSWER_SHARE
    seconds = pace.seconds(drawn * (1 + other_passes), 1) + drawn * drawing.token
    basis = "measured" if pace.measured and drawing.measured else "estimated"
    return max(5, min(200, int(request.seconds / seconds))), basis
