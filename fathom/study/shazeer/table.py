"""The experiment's tables beside the paper's, and the verdict on its claims, from result.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from fathom.study.results import markdown_table

PAPER_LOSSES = (
    ("0", "0", "39.8", "3.04", "3.01", "17.80"),
    ("0.2", "0", "35.6", "0.06", "0.17", "1.47"),
    ("0", "0.2", "35.7", "0.22", "0.04", "1.15"),
    ("0.1", "0.1", "35.6", "0.06", "0.05", "1.14"),
)
"""Table 6: MoE-256 on the 1-billion-word benchmark."""
PAPER_COUNTS = (("MoE-4", "45.0"), ("MoE-32", "39.7"), ("MoE-256", "35.7"), ("MoE-256-h", "36.0"))
"""Table 7, after 10 epochs."""

_INTRODUCTION = """# Sparsely-gated mixtures of experts between LSTM layers (Shazeer et al. 2017)

Without a balance loss a few experts take most tokens, and the model is worse; with one, more experts for the same work
per token make a better model. Both claims are tried here on a model and a text that are thousands of times smaller, so
the perplexities of the paper's tables and of ours cannot be compared: only the order of the rows can.

Model: embedding, LSTM, mixture (a token takes 4 experts, or 2 of 16 groups and 2 experts in each), LSTM, softmax over
{vocabulary} byte-pair tokens; width {width}, ReLU experts of {hidden} hidden units; {steps} steps of {tokens} tokens
with Adam, linear warm-up, then the inverse square root of the step."""

_LIMITS = """## What differs from the paper

- Python's standard library ({megabytes:.1f} MB for training, every tenth module held out) instead of a billion words.
  Each model sees {seen:,} tokens, in batches of {tokens:,} instead of about 300,000 words; its width is {width}
  instead of 512, its experts are {hidden} wide instead of 1,024. The text depends on the version of Python: result.json
  has its SHA-256.
- One seed a row, the same windows for all rows. Perplexities within {noise:.1%} of each other count as equal, since
  another seed may order them otherwise: at the default sizes seeds 0 and 1 gave MoE-4 55.6 and 55.0, MoE-32 54.3 and
  54.1, MoE-256 53.6 and 54.2. One of 256 experts meets a 64th of the tokens that one of 4 meets, which is few here.
- Gradients are clipped at norm 1. The softmax is exact; the paper sampled it.
- As in the paper, importance and load are averaged over several batches with the gate's noise on (here of held-out
  text); perplexity is measured without noise.
- Experts run one after another on one machine: nothing here says how fast a balanced load is on many."""

NOISE = 0.015
"""Perplexities of one run that lie closer together than this count as equal: other seeds reorder them."""


def make_table(result: Mapping[str, Any]) -> str:
    """Write table.md."""
    settings, rows = result["settings"], result["models"]
    tokens = settings["batch"] * settings["length"]
    balance = ("w importance", "w load", "perplexity", "CV(importance)", "CV(load)", "max/mean load")
    ablation = sorted((row for row in rows if row["ablation"]), key=lambda row: PAPER_ORDER.index(_weights(row)))
    counts = [row for row in rows if row["counts"]]
    parts = [
        _INTRODUCTION.format(tokens=f"{tokens:,}", **settings),
        "**Quick sizes: these figures prove nothing.**" if result["quick"] else "",
        f"## The balance losses, {ablation[0]['name']}\n\nHere, perplexity of a token:",
        markdown_table(balance, [_loss_row(row) for row in ablation]),
        "The paper's table 6 (MoE-256, perplexity of a word):",
        markdown_table(balance, PAPER_LOSSES),
        "## More experts for the same work per token\n\nHere, both losses at 0.1, perplexity of a token:",
        markdown_table(("model", "parameters", "perplexity", "max/mean load"), [_count_row(row) for row in counts]),
        "The paper's table 7 (perplexity of a word after 10 epochs):",
        markdown_table(("model", "perplexity"), PAPER_COUNTS),
        "## The paper's claims here\n\n" + "\n".join(claims(rows)),
        _LIMITS.format(
            megabytes=result["corpus"]["train_bytes"] / 1e6,
            seen=settings["steps"] * tokens,
            tokens=tokens,
            noise=NOISE,
            **{name: settings[name] for name in ("width", "hidden")},
        ),
    ]
    return "\n\n".join(part for part in parts if part)


PAPER_ORDER = ((0.0, 0.0), (0.2, 0.0), (0.0, 0.2), (0.1, 0.1))


def claims(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say of each claim whether these figures bear it out, and which."""
    kinds = {_weights(row): row for row in rows if row["ablation"]}
    none, balanced = kinds[0.0, 0.0], [row for weights, row in kinds.items() if any(weights)]
    peaks, words = [row["max_over_mean_load"] for row in balanced], [row["perplexity"] for row in balanced]
    lines = [
        _verdict(
            none["max_over_mean_load"] > 2 * max(peaks),
            "without a loss the load collapses onto a few experts, with either it does not",
            f"max/mean load {none['max_over_mean_load']:.2f} against {_range(peaks)}",
        ),
        _verdict(
            none["perplexity"] > max(words) * (1 + NOISE),
            "the model is worse without a loss",
            f"perplexity {none['perplexity']:.3f} against {_range(words, 3)}",
        ),
    ]
    if (0.2, 0.0) in kinds and (0.0, 0.2) in kinds:
        importance, load = kinds[0.2, 0.0], kinds[0.0, 0.2]
        lines.append(
            _verdict(
                importance["cv_importance"] < load["cv_importance"] and load["cv_load"] < importance["cv_load"],
                "each loss evens out its own quantity most",
                f"CV(importance) {importance['cv_importance']:.2f} and {load['cv_importance']:.2f}, "
                f"CV(load) {importance['cv_load']:.2f} and {load['cv_load']:.2f}, for the importance and the load loss",
            )
        )
    counts = [row for row in rows if row["counts"]]
    flat = [row for row in counts if row["layout"]["groups"] is None]
    values = [row["perplexity"] for row in flat]
    for less, more in pairwise(flat):
        lines.append(
            _verdict(
                more["perplexity"] < less["perplexity"] * (1 - NOISE),
                f"{more['name']} is better than {less['name']} for the same work per token",
                f"perplexity {more['perplexity']:.3f} against {less['perplexity']:.3f}",
            )
        )
    levels = next((row for row in counts if row["layout"]["groups"] is not None), None)
    if levels is not None:
        near = abs(levels["perplexity"] - values[-1]) < 0.02 * values[-1]
        pair = f"{levels['perplexity']:.3f} against {values[-1]:.3f}"
        lines.append(_verdict(near, "two levels cost little: within 2 % of one level", pair))
    return lines


def _verdict(holds: bool, claim: str, figures: str) -> str:
    return f"- {'Reproduced' if holds else 'Not reproduced'}: {claim} ({figures})."


def _range(values: Sequence[float], digits: int = 2) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def _weights(row: Mapping[str, Any]) -> tuple[float, float]:
    return row["importance_weight"], row["load_weight"]


def _loss_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    weights = tuple(f"{weight:g}" for weight in _weights(row))
    figures = tuple(f"{row[name]:.2f}" for name in ("cv_importance", "cv_load", "max_over_mean_load"))
    return (*weights, f"{row['perplexity']:.3f}", *figures)


def _count_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["name"], f"{row['parameters']:,}", f"{row['perplexity']:.3f}", f"{row['max_over_mean_load']:.2f}"
