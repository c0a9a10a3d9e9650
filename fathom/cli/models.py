"""``fathom models``: the models ready by name, and every preset with its size, attention and cache, all computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fathom.cli import options
from fathom.cli.console import print_json
from fathom.cli.sections import report_console
from fathom.errors import SpecError
from fathom.families import PRESETS, Preset
from fathom.locale import tr
from fathom.plan import cache_bytes_per_token, count_parameters, short_count
from fathom.progress import size

if TYPE_CHECKING:
    from rich.table import Table

    from fathom.inference.catalog import CatalogModel


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    family: Annotated[str | None, typer.Option("--family", help="Only one family, e.g. deepseek_v2.")] = None,
    cached: Annotated[
        bool, typer.Option("--cached", help="List the models of the hub that lie in its cache on this machine instead.")
    ] = False,
) -> None:
    """List the models ready to use by name, and the published shapes that a recipe can name as its preset."""
    if cached:
        _print_cached(as_json=as_json)
        return
    from fathom.inference.catalog import catalog

    rows = [describe(entry) for entry in _chosen(family)]
    ready = [] if family is not None else list(catalog().values())
    if as_json:
        named = [{"name": model.name, "ready": True} | _ready(model) for model in ready]
        print_json([*named, *rows])
        return
    if ready:
        _print_ready(ready)
    _print_table(rows)


def describe(entry: Preset) -> dict[str, Any]:
    """Return what is listed of a preset, as plain JSON; cache bytes are those of bfloat16 where nothing is said."""
    spec = entry.spec
    count = count_parameters(spec)
    return {
        "name": spec.name,
        "family": spec.family,
        "total_parameters": count.total,
        "active_parameters": count.active,
        "active_parameters_with_embedding": count.active_with_embedding,
        "mtp_parameters": count.mtp,
        "vision_parameters": count.vision,
        "layers": spec.num_hidden_layers,
        "attention": spec.attention.label,
        "cache_bytes_per_token": round(cache_bytes_per_token(spec)),
        "cache_bytes_per_token_int8": round(cache_bytes_per_token(spec, cache_format="int8")),
        "cache_bytes_per_token_int6": round(cache_bytes_per_token(spec, cache_format="int6")),
        "context": spec.max_position_embeddings,
        "source": entry.source,
        "unconfirmed": list(entry.unconfirmed),
    }


def _ready(model: CatalogModel) -> dict[str, Any]:
    return {
        "title": model.title,
        "total_parameters": model.parameters,
        "bytes": model.member_bytes,
        "licence": model.licence,
        "source": f"{model.package} {model.version} on PyPI",
    }


def _chosen(family: str | None) -> list[Preset]:
    entries = list(PRESETS.values())
    if family is None:
        return entries
    known = sorted({entry.spec.family for entry in entries})
    if family not in known:
        raise SpecError("--family", f"no preset is of family {family!r}", f"use one of {', '.join(known)}")
    return [entry for entry in entries if entry.spec.family == family]


def _print_ready(models: list[CatalogModel]) -> None:
    from rich.text import Text

    table = _table()
    table.add_column(tr("ready by name"), no_wrap=True)
    table.add_column(tr("total"), justify="right", no_wrap=True)
    table.add_column(tr("download"), justify="right", no_wrap=True)
    for name in (tr("licence"), tr("what it is")):
        table.add_column(name, no_wrap=True)
    for model in models:
        download = size(model.member_bytes)
        table.add_row(model.name, short_count(model.parameters), download, model.licence, model.title)
    console = report_console()
    console.print(table)
    example = (f"fathom chat {models[0].name}", "dim")
    console.print(Text.assemble(example, " ", tr("fetches one the first time; the rest are shapes for recipes"), "\n"))


def _print_cached(*, as_json: bool) -> None:
    from fathom.inference.loading import fetched_models

    models = fetched_models(options.cache_directory())
    if as_json:
        print_json([{"name": str(model.name), "ready": True, "bytes": model.nbytes} for model in models])
        return
    console = report_console()
    if not models:
        console.print(tr("the hub's cache holds no model that Fathom opens; fathom chat owner/name fetches one"))
        return
    table = _table()
    table.add_column(tr("ready in the hub's cache"), no_wrap=True)
    table.add_column(tr("weights"), justify="right", no_wrap=True)
    for model in models:
        table.add_row(str(model.name), size(model.nbytes))
    console.print(table)


def _table() -> Table:
    from rich.table import Table

    return Table(box=None, pad_edge=False, header_style="bold")


def _print_table(rows: list[dict[str, Any]]) -> None:
    console, table = report_console(), _table()
    for name in (tr("model"), tr("family")):
        table.add_column(name, no_wrap=True)
    for name in (tr("total"), tr("active"), tr("layers")):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(tr("attention"), no_wrap=True)
    for name in (tr("cache B/token"), tr("context")):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"] + (" *" if row["unconfirmed"] else ""),
            row["family"],
            short_count(row["total_parameters"]),
            short_count(row["active_parameters"]),
            str(row["layers"]),
            row["attention"],
            f"{row['cache_bytes_per_token']:,}",
            f"{row['context']:,}",
        )
    console.print(table)
    console.print(tr("active: parameters one token uses, without the input embedding; cache: bfloat16, all layers"))
    if any(row["unconfirmed"] for row in rows):
        console.print(tr("* some numbers are not confirmed by a paper or a released config; --json names them"))
