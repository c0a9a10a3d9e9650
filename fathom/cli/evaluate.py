"""``fathom evaluate``: bits per byte of held-out text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fathom.cli import options, sampling


def evaluate(
    model: options.Model,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", help="Measure this folder or file instead of the run's held-out text."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Tokens measured of each source at most.")] = 32_768,
    context: Annotated[int | None, typer.Option("--context", help="Window in tokens; the model's if left out.")] = None,
    device: options.Device = "auto",
    dtype: sampling.Dtype = "auto",
) -> None:
    """Measure how many bits the model needs for one byte of text, by source."""
    from fathom.pipeline.measure import measure_held_out, measure_texts

    opened = sampling.open_model(model, device, dtype)
    if text:
        results = measure_texts(opened, text, max_tokens=max_tokens, context=context)
    else:
        results = measure_held_out(opened, max_tokens=max_tokens, context=context)
    sampling.announce(opened)
    if as_json:
        rows = {
            source: {"bits_per_byte": r.value, "tokens": r.tokens, "bytes": r.text_bytes}
            for source, r in results.items()
        }
        print(json.dumps({"bits_per_byte": rows}, ensure_ascii=False, indent=1))
        return
    table = Table("source", "bits per byte", "tokens", "bytes")
    for column in table.columns[1:]:
        column.justify = "right"
    for source, result in results.items():
        table.add_row(source, f"{result.value:.3f}", f"{result.tokens:,}", f"{result.text_bytes:,}")
    Console().print(table)
