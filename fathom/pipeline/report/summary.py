"""What was trained and what it can do now, in three sentences: the first thing a report shows."""

from __future__ import annotations

from fathom.pipeline.report.data import VALIDATION, RunData

_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


def summary(data: RunData) -> tuple[str, str, str]:
    """Return what was trained, how well it models text, and how well it answers, each as one sentence.

    A measure that the recipe does not take is said not to have been taken.
    """
    return _trained(data), _text(data), _answers(data)


def _trained(data: RunData) -> str:
    facts = data.facts
    size = f" of {_count(facts['parameters'])} parameters" if "parameters" in facts else ""
    if facts.get("active_parameters", facts.get("parameters")) != facts.get("parameters"):
        size += f" ({_count(facts['active_parameters'])} active per token)"
    tokens = f" on {_count(facts['tokens'])} tokens of text" if "tokens" in facts else ""
    steps = [curve.name for curve in data.sft_loss_curves if not curve.name.endswith(VALIDATION)]
    steps += [curves.name for curves in (*data.preferences, *data.online)]
    by = f" by {' and '.join(dict.fromkeys(steps))}" if steps else ""
    return f"Trained from {data.origin}: a model{size}{tokens}{', then' if tokens and by else ''}{by}."


def _text(data: RunData) -> str:
    ends = {source: bits["end"] for source, bits in data.bits_per_byte.items() if bits["end"] is not None}
    if not ends:
        return "How well it models held-out text was not measured."
    best, worst = min(ends, key=lambda name: ends[name] or 0.0), max(ends, key=lambda name: ends[name] or 0.0)
    if len(ends) == 1:
        said = f"{ends[best]:.2f} bits per byte ({best})"
    else:
        said = f"{ends[best]:.2f} ({best}) to {ends[worst]:.2f} ({worst}) bits per byte"
    starts = [bits["start"] for bits in data.bits_per_byte.values() if bits["start"] is not None]
    before = f", where random weights need {sum(starts) / len(starts):.2f}" if starts else ""
    needle = ""
    if data.needle is not None:
        row = data.needle.accuracy[-1]
        needle = f"; it finds a needle in {data.needle.lengths[-1]:,} tokens in {sum(row) / len(row):.0%} of trials"
    return f"On held-out text it needs {said}{before}{needle}."


def _answers(data: RunData) -> str:
    if not data.tasks and data.replies is not None:
        return "What it answered before fine-tuning and answers now stands below; right answers were not counted."
    if not data.tasks:
        return "It continues texts; answering was not measured."
    last = {task: list(stages.items())[-1] for task, stages in data.tasks.items() if stages}
    stages = {stage for stage, _ in last.values()}
    each = [f"{score.accuracy:.0%} of {task}" for task, (_, score) in last.items()]
    listed = each[0] if len(each) == 1 else f"{', '.join(each[:-1])} and {each[-1]}"
    after = f" after {next(iter(stages))}" if len(stages) == 1 else ""
    return f"It answers held-out problems right{after}: {listed}."


def _count(value: float) -> str:
    for size, letter in _UNITS:
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"
