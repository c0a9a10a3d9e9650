"""``fathom models``: every preset with its size, attention and cache, computed and not looked up."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from fathom.errors import SpecError
from fathom.families import PRESETS, Preset
from fathom.plan import cache_bytes_per_token, count_parameters

PIPE_COLUMNS = 140


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    family: Annotated[str | None, typer.Option("--family", help="Only one family, e.g. deepseek_v2.")] = None,
) -> None:
    """List the published models that a recipe can name as its preset."""
    rows = [describe(entry) for entry in _chosen(family)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    _print_table(rows)


def describe(entry: Preset) -> dict[str, Any]:
    """Return what is listed of a preset, as plain JSON; cache bytes are those of bfloat16."""
    spec = entry.spec
    count = count_parameters(spec)
    return {
        "name": spec.name,
        "family": spec.family,
        "total_parameters": count.total,
        "active_parameters": count.active,
        "active_parameters_with_embedding": count.active_with_embedding,
        "mtp_parameters": count.mtp,
        "layers": spec.num_hidden_layers,
        "attention": spec.attention.label,
        "cache_bytes_per_token": round(cache_bytes_per_token(spec)),
        "context": spec.max_position_embeddings,
        "source": entry.source,
        "unconfirmed": list(entry.unconfirmed),
    }


def short(count: float) -> str:
    """Write a count of parameters in three digits: 16.1M, 236B."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size * 0.9995:
            return f"{count / size:#.3g}".rstrip(".") + letter
    return str(count)


def _chosen(family: str | None) -> list[Preset]:
    entries = list(PRESETS.values())
    if family is None:
        return entries
    known = sorted({entry.spec.family for entry in entries})
    if family not in known:
        raise SpecError("--family", f"no preset is of family {family!r}", f"use one of {', '.join(known)}")
    return [entry for entry in entries if entry.spec.family == family]


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_COLUMNS)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("model", "family"):
        table.add_column(name, no_wrap=True)
    for name in ("total", "active", "layers"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("attention", no_wrap=True)
    for name in ("cache B/token", "context"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"] + (" *" if row["unconfirmed"] else ""),
            row["family"],
            short(row["total_parameters"]),
            short(row["active_parameters"]),
            str(row["layers"]),
            row["attention"],
            f"{row['cache_bytes_per_token']:,}",
            f"{row['context']:,}",
        )
    console.print(table)
    console.print("active: parameters one token uses, without the input embedding; cache: bfloat16, all layers")
    if any(row["unconfirmed"] for row in rows):
        console.print("* some numbers are not confirmed by a paper or a released config; --json names them")
