"""What the steps of a run wrote, read for a report: another shape is an error that names the file, never a crash."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fathom.inference.run_record import as_written, read_json
from fathom.pipeline.report.data import AlarmSpan, Curve, Needle
from fathom.train.alarms import TITLES
from fathom.train.metrics import read_json_lines
from fathom.train.validation import VALIDATION_LOSS

MAX_CELLS = 4096
"""Cells of a picture, and bars: each is drawn by its own, and no recipe asks for as many."""
HELD_OUT_LOSS = f"evaluation.{VALIDATION_LOSS}"
_LARGEST = 1e18
"""Beyond any count, loss or time; pictures fail near the largest floats."""


def number(value: Any) -> float:
    """Return a number that a picture can show; ``ValueError`` for anything else."""
    if not isinstance(value, int | float) or abs(value) > _LARGEST:
        raise ValueError(f"{value!r} is no number of a run")
    return value


def numbers(values: Any) -> list[float]:
    """Return a list of such numbers."""
    if not isinstance(values, list):
        raise ValueError(f"{values!r} is no list of numbers")
    return [number(value) for value in values]


def text(value: Any) -> str:
    """Return a text that a page can hold; ``ValueError`` for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value.encode(errors="replace").decode()


def names(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is drawn one by one under names, where there are no more than may be."""
    if len(values) > MAX_CELLS:
        raise ValueError(f"{len(values)} of one thing are more than a picture shows")
    return {text(name): value for name, value in values.items()}


def rows_of(path: Path, required: Iterable[str], *, optional: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return the lines of metrics of a step, none where it wrote none.

    The fields named are numbers in them, the optional ones None or missing where they do not apply; ``evaluation`` has
    numbers by source.
    """
    rows = read_json_lines(path)
    with as_written(path):
        for row in rows:
            for field in required:
                number(row[field])
            for field in optional:
                if row.get(field) is not None:
                    number(row[field])
            for value in names(row.get("evaluation", {})).values():
                number(value)
    return rows


def with_evaluation(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return lines of metrics with what their ``evaluation`` holds as fields of their own: ``evaluation.NAME``."""
    return [
        {**row, **{f"evaluation.{name}": value for name, value in row.get("evaluation", {}).items()}} for row in rows
    ]


def alarms(step: str, path: Path) -> list[AlarmSpan]:
    """Return every alarm that a step's metrics record: what it was, since when, and until when."""
    rows = read_json_lines(path)
    held: dict[str, list[int]] = {}
    with as_written(path):
        for row in rows:
            for name in row.get("alarms", ()):
                if name in TITLES:
                    held.setdefault(name, []).append(int(number(row["step"])))
        last = int(number(rows[-1]["step"])) if rows else 0
    return [AlarmSpan(step=step, title=TITLES[name], first=at[0], last=at[-1], steps=last) for name, at in held.items()]


def curve_of(name: str, rows: Sequence[Mapping[str, Any]], field: str, *, over: str, offset: float = 0) -> Curve:
    """Return a field of the rows that have it, over another."""
    kept = [row for row in rows if row.get(field) is not None]
    return Curve(name=name, x=[offset + row[over] for row in kept], y=[row[field] for row in kept])


def bits_per_byte(path: Path | None) -> dict[str, dict[str, float | None]]:
    """Return what an evaluate step wrote: source -> bits per byte at its start and end."""
    if path is None:
        return {}
    document = read_json(path)
    with as_written(path):
        start, end = document["start"], document["end"]
        first = {source: None if start.get(source) is None else number(start[source]) for source in names(end)}
        return {source: {"start": first[source], "end": number(value)} for source, value in end.items()}


def needle(path: Path | None) -> Needle | None:
    """Return what a needle step wrote."""
    if path is None:
        return None
    document = read_json(path)
    with as_written(path):
        lengths, depths = numbers(document["lengths"]), numbers(document["depths"])
        accuracy, gain = ([numbers(row) for row in document[field]] for field in ("accuracy", "gain_bits"))
        for rows in (accuracy, gain):
            if not rows or len(rows) != len(lengths) or any(len(row) != len(depths) for row in rows):
                raise ValueError(f"no table of {len(lengths)} lengths and {len(depths)} depths")
        if not 0 < len(lengths) * len(depths) <= MAX_CELLS:
            raise ValueError(f"{len(lengths)} lengths and {len(depths)} depths are no picture")
        return Needle(lengths=[int(length) for length in lengths], depths=depths, accuracy=accuracy, gain_bits=gain)


def samples(path: Path | None) -> list[tuple[str, str]]:
    """Return prompts and continuations that a sample step wrote."""
    if path is None:
        return []
    document = read_json(path)
    with as_written(path):
        return [(text(sample["prompt"]), text(sample["continuation"])) for sample in document["samples"]]


def expert_shares(path: Path, layers: int) -> Iterator[tuple[float, str, list[float]]]:
    """Yield step, layer and the shares of its experts, of a model of ``layers`` layers; each at least one share."""
    records = read_json_lines(path)
    with as_written(path):
        widths: dict[str, int] = {}
        for record in records:
            step = number(record["step"])
            for layer, shares in record["layers"].items():
                width = widths.setdefault(text(layer), len(shares))
                if not 0 < len(shares) == width or len(widths) > layers:
                    raise ValueError(f"{layer!r} has {len(shares)} experts at step {step}")
                yield step, layer, numbers(shares)
