"""Gather what the steps of a run left into ``RunData``."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fathom.inference.loading import open_source
from fathom.inference.run_record import StepState, last_before
from fathom.locale import tr
from fathom.pipeline.context import base_model, model_step, spec_during
from fathom.pipeline.report import records
from fathom.pipeline.report.data import RAW_TEXT, Curve, ExpertLoads, Replies, RunData
from fathom.pipeline.report.posttraining import (
    example_problems,
    online_curves,
    preference_curves,
    sft_loss_curves,
    task_scores,
)
from fathom.pipeline.report.tuning import read_replies
from fathom.plan.cache import cache_bytes_per_token
from fathom.plan.count import count_parameters
from fathom.spec.attention import GroupedQueryAttention, LatentAttention
from fathom.spec.model import ModelSpec
from fathom.spec.recipe import (
    EvaluateStep,
    LearningStep,
    ModelStep,
    NeedleStep,
    OpenStep,
    Recipe,
    RepliesStep,
    SampleStep,
    Step,
    TrainStep,
)
from fathom.spec.step_results import result_name
from fathom.train.record import METRICS

TRAINING = ("step", "tokens", "seconds")
"""Numbers of every line that training writes."""
MAX_RECORDS = 240
"""Records of expert load a heat map shows; more are thinned evenly."""


def collect(recipe: Recipe, directory: Path, states: Mapping[str, StepState], report: Step) -> RunData:
    """Return what is known about the run when ``report`` comes; what a recipe does not measure is left out."""
    before = recipe.steps[: [step.name for step in recipe.steps].index(report.name)]
    stages = [step for step in before if isinstance(step, TrainStep)]
    fields = ("lm_loss", "dropped_fraction")
    metrics = {
        step.name: records.rows_of(directory / step.name / METRICS, TRAINING, optional=fields) for step in stages
    }
    offsets = _offsets(metrics)
    opened: OpenStep | None = last_before(recipe, report, OpenStep)
    spec = _spec(recipe, directory, report, opened)
    bits = records.bits_per_byte(_last(before, EvaluateStep, directory))
    shown = {step.name: states[step.name].seconds for step in before if step.name in states}
    return RunData(
        name=recipe.name,
        facts=_facts(spec, metrics),
        stages=list(shown.items()),
        origin=RAW_TEXT if opened is None else opened.model,
        losses=[
            records.curve_of(name, rows, "lm_loss", over="tokens", offset=offsets[name])
            for name, rows in metrics.items()
            if rows
        ],
        bits_over_training=_bits_over_training(metrics, offsets, bits),
        bits_per_byte=bits,
        expert_loads=_expert_loads(directory, metrics, offsets, spec),
        dropped_fraction=_dropped(metrics),
        needle=records.needle(_last(before, NeedleStep, directory)),
        cache_bytes_per_token=cache_kinds(spec),
        cache_kind=_cache_kind(spec),
        samples=records.samples(_last(before, SampleStep, directory)),
        sft_loss_curves=sft_loss_curves(before, directory),
        online=online_curves(before, directory),
        preferences=preference_curves(before, directory),
        tasks=task_scores(before, directory),
        problems=example_problems(before, directory),
        commands=_commands(directory, base_model(recipe)),
        alarms=[
            alarm
            for step in before
            if isinstance(step, LearningStep)
            for alarm in records.alarms(step.name, directory / step.name / METRICS)
        ],
        replies=_replies(before, directory),
    )


def _spec(recipe: Recipe, directory: Path, report: Step, opened: OpenStep | None) -> ModelSpec:
    """Return the spec of the model a report is about: the recipe's own, or that of the model it began with."""
    spec = spec_during(recipe, report) if opened is None else None
    if spec is not None:
        return spec
    return open_source(directory / result_name(model_step(recipe, report))).spec


def cache_kinds(spec: ModelSpec) -> dict[str, float]:
    """Cache bytes per token at 16 bits of MHA, GQA, MQA and MLA for a model of this shape (V2 Table 1).

    GQA has 8 groups, or half as many as there are heads where those are fewer. Where the model has no latent of its
    own, MLA's is V2's: 4 head widths and half a head width of rotated key (V2 §3.1.2). The model's own kind is its
    own number.
    """
    old = spec.attention
    heads = old.num_heads
    width = old.v_head_dim if isinstance(old, LatentAttention) else old.head_dim
    groups = next(g for g in range(max(1, min(8, heads // 2)), 0, -1) if heads % g == 0)
    kinds: dict[str, GroupedQueryAttention | LatentAttention] = {
        name: GroupedQueryAttention(num_heads=heads, num_kv_heads=kv_heads, head_dim=width)
        for name, kv_heads in (("MHA", heads), ("GQA", groups), ("MQA", 1))
    }
    kinds["MLA"] = LatentAttention(
        num_heads=heads,
        kv_lora_rank=4 * width,
        qk_nope_head_dim=width,
        qk_rope_head_dim=max(2, width // 4 * 2),
        v_head_dim=width,
    )
    kinds[_cache_kind(spec)] = old
    return {name: cache_bytes_per_token(dataclasses.replace(spec, attention=kind)) for name, kind in kinds.items()}


def _cache_kind(spec: ModelSpec) -> str:
    attention = spec.attention
    if isinstance(attention, LatentAttention):
        return "MLA"
    if attention.num_kv_heads == attention.num_heads:
        return "MHA"
    return "MQA" if attention.num_kv_heads == 1 else "GQA"


def _last(before: Sequence[Step], kind: type[Step], directory: Path) -> Path | None:
    """Return the file that the last step of a kind wrote, or None."""
    found = [step for step in before if isinstance(step, kind)]
    path = directory / result_name(found[-1]) if found else None
    return path if path is not None and path.exists() else None


def _offsets(metrics: Mapping[str, list[dict[str, Any]]]) -> dict[str, int]:
    offsets, total = {}, 0
    for name, rows in metrics.items():
        offsets[name] = total
        total += rows[-1]["tokens"] if rows else 0
    return offsets


def _facts(spec: ModelSpec, metrics: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    count = count_parameters(spec)
    rows = [rows[-1] for rows in metrics.values() if rows]
    tokens, seconds = sum(row["tokens"] for row in rows), sum(row["seconds"] for row in rows)
    facts: dict[str, Any] = {
        "parameters": count.total,
        "active_parameters": count.active,
        "attention": spec.attention.label,
        "layers": spec.num_hidden_layers,
        "hidden_size": spec.hidden_size,
        "vocabulary": spec.vocab_size,
        "context": spec.max_position_embeddings,
    }
    if metrics:
        facts["tokens"] = tokens
        facts["tokens_per_second"] = round(tokens / seconds, 1) if seconds else 0.0
    if spec.moe is not None:
        facts["experts"] = f"{spec.moe.n_routed_experts} routed, {spec.moe.num_experts_per_tok} per token"
        facts["shared_experts"] = spec.moe.n_shared_experts
    return facts


def _bits_over_training(
    metrics: Mapping[str, list[dict[str, Any]]],
    offsets: Mapping[str, int],
    bits: Mapping[str, Mapping[str, float | None]],
) -> list[Curve]:
    """Join the evaluations of all stages, after what random weights need."""
    starts = {source: values["start"] for source, values in bits.items()}
    points = {source: [(0.0, start)] for source, start in starts.items() if start is not None}
    for name, rows in metrics.items():
        for row in rows:
            for source, value in row.get("evaluation", {}).items():
                points.setdefault(source, []).append((offsets[name] + row["tokens"], value))
    return [Curve(name=s, x=[x for x, _ in p], y=[y for _, y in p]) for s, p in points.items()]


def _expert_loads(
    directory: Path, metrics: Mapping[str, list[dict[str, Any]]], offsets: Mapping[str, int], spec: ModelSpec
) -> list[ExpertLoads]:
    most = spec.num_hidden_layers + spec.num_nextn_predict_layers
    layers: dict[str, list[tuple[float, list[float]]]] = {}
    for name, rows in metrics.items():
        tokens = {row["step"]: offsets[name] + row["tokens"] for row in rows}
        for step, layer, shares in records.expert_shares(directory / name / "experts.jsonl", most):
            if step in tokens:
                layers.setdefault(layer, []).append((tokens[step], [s * len(shares) for s in shares]))
    loads = []
    for layer, found in layers.items():
        thinned = found[:: -(-len(found) // MAX_RECORDS)]
        loads.append(ExpertLoads(layer=layer, tokens=[t for t, _ in thinned], shares=[s for _, s in thinned]))
    return loads


def _dropped(metrics: Mapping[str, list[dict[str, Any]]]) -> float | None:
    values = [
        row["dropped_fraction"] for rows in metrics.values() for row in rows if row.get("dropped_fraction") is not None
    ]
    last = values[-max(1, len(values) // 10) :]
    return sum(last) / len(last) if last else None


def _replies(before: Sequence[Step], directory: Path) -> Replies | None:
    path = _last(before, RepliesStep, directory)
    return None if path is None else read_replies(path)


def _commands(directory: Path, base: ModelStep | None) -> list[tuple[str, str]]:
    run, texts = (shlex.quote(str(each)) for each in (directory, directory if base is None else directory / base.name))
    talk = [] if base is None else [(tr("Talk with it:"), f"fathom chat {run}")]
    return [
        (tr("Continue a text:"), f'fathom generate {texts} --prompt "Once upon a time"'),
        *talk,
        (tr("Measure it on your own text:"), f"fathom evaluate {texts} --text FOLDER"),
        (tr("Use it from Python:"), f'import fathom\nmodel = fathom.load("{directory}")'),
    ]
