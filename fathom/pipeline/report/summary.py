"""What was trained and what it can do now, in three sentences: the first thing a report shows."""

from __future__ import annotations

from fathom.locale import tr
from fathom.pipeline.report.data import VALIDATION, RunData
from fathom.plan.count import short_count


def summary(data: RunData) -> tuple[str, str, str]:
    """Return what was trained, how well it models text, and how well it answers, each as one sentence.

    A measure that the recipe does not take is said not to have been taken.
    """
    return _trained(data), _text(data), _answers(data)


def _trained(data: RunData) -> str:
    facts = data.facts
    size = tr(" of {count} parameters", count=short_count(facts["parameters"])) if "parameters" in facts else ""
    if facts.get("active_parameters", facts.get("parameters")) != facts.get("parameters"):
        size += tr(" ({count} active per token)", count=short_count(facts["active_parameters"]))
    tokens = tr(" on {count} tokens of text", count=short_count(facts["tokens"])) if "tokens" in facts else ""
    steps = [curve.name for curve in data.sft_loss_curves if not curve.name.endswith(VALIDATION)]
    steps += [curves.name for curves in (*data.preferences, *data.online)]
    named = tr(" and ").join(dict.fromkeys(steps))
    by = "" if not steps else tr(", then by {steps}", steps=named) if tokens else tr(" by {steps}", steps=named)
    start = tr(data.origin)
    return tr("Trained from {origin}: a model{size}{tokens}{by}.", origin=start, size=size, tokens=tokens, by=by)


def _text(data: RunData) -> str:
    ends = {source: bits["end"] for source, bits in data.bits_per_byte.items() if bits["end"] is not None}
    if not ends:
        return tr("How well it models held-out text was not measured.")
    best, worst = min(ends, key=lambda name: ends[name] or 0.0), max(ends, key=lambda name: ends[name] or 0.0)
    if len(ends) == 1:
        said = tr("{bits} bits per byte ({source})", bits=f"{ends[best]:.2f}", source=best)
    else:
        ranges = {"low": f"{ends[best]:.2f}", "best": best, "high": f"{ends[worst]:.2f}", "worst": worst}
        said = tr("{low} ({best}) to {high} ({worst}) bits per byte", **ranges)
    starts = [bits["start"] for bits in data.bits_per_byte.values() if bits["start"] is not None]
    random = f"{sum(starts) / len(starts):.2f}" if starts else ""
    before = tr(", where random weights need {bits}", bits=random) if starts else ""
    needle = ""
    if data.needle is not None:
        row = data.needle.accuracy[-1]
        found = {"tokens": f"{data.needle.lengths[-1]:,}", "share": f"{sum(row) / len(row):.0%}"}
        needle = tr("; it finds a needle in {tokens} tokens in {share} of trials", **found)
    return tr("On held-out text it needs {bits}{before}{needle}.", bits=said, before=before, needle=needle)


def _answers(data: RunData) -> str:
    if not data.tasks and data.replies is not None:
        return tr("What it answered before fine-tuning and answers now stands below; right answers were not counted.")
    if not data.tasks:
        return tr("It continues texts; answering was not measured.")
    last = {task: list(stages.items())[-1] for task, stages in data.tasks.items() if stages}
    stages = {stage for stage, _ in last.values()}
    each = [tr("{share} of {task}", share=f"{score.accuracy:.0%}", task=task) for task, (_, score) in last.items()]
    listed = tr(" and ").join([*([tr(", ").join(each[:-1])] if each[1:] else []), each[-1]])
    after = tr(" after {stage}", stage=next(iter(stages))) if len(stages) == 1 else ""
    return tr("It answers held-out problems right{after}: {scores}.", after=after, scores=listed)
