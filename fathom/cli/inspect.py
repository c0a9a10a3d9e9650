"""``fathom inspect``: what a checkpoint holds, without loading it, or what the columns of a data file mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fathom.cli import inspect_data, options
from fathom.cli.console import print_json
from fathom.cli.load_progress import LoadProgress
from fathom.cli.sections import PIPE_COLUMNS, report_console, section
from fathom.progress import amount

TEMPLATE_LINES = 4
SPECIAL_TOKENS = 8
FILES = 12


def inspect(
    model: options.ModelOrData,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs, with the whole spec.")] = False,
    kind: Annotated[str, typer.Option("--kind", help="Read data as: conversations, preferences or problems.")] = "",
    format_name: Annotated[str, typer.Option("--format", help="Read data in this format, as in a recipe.")] = "",
    field: Annotated[
        list[str] | None, typer.Option("--field", help="A column of the data, as prompt=COLUMN; may be repeated.")
    ] = None,
) -> None:
    """Say what a model is: shape, parameters, tensors, cache, tokenizer, exports; or what the columns of data mean."""
    from fathom.inference.inspection import inspect_source
    from fathom.inference.loading import open_source
    from fathom.pipeline.data_inspection import holds_data

    if kind or format_name or field or holds_data(Path(model)):
        inspect_data.inspect(Path(model), as_json=as_json, kind=kind, format_name=format_name, fields=field or [])
        return
    with LoadProgress(model) as progress:
        found = inspect_source(open_source(model, progress, cache_dir=options.cache_directory()))
    if as_json:
        print_json(found)
        return
    console = report_console()
    console.print(
        Text.assemble((found["name"], "bold"), f"  {found['family']}, format {found['form']}, {found['path']}")
    )
    for title, rows in (
        ("model", found["summary"].items()),
        ("parameters", _parameters(found["parameters"])),
        ("cache", _cache(found["cache"], found["spec"]["max_position_embeddings"])),
        ("text", _text(found)),
    ):
        section(console, title, rows)
    _tensors(console, found["tensors"])
    _files(console, found["files"])
    section(console, "exports", _exports(found["exports"]))


def size(count: int) -> str:
    """Write bytes shortly: 1.23 GB."""
    short = amount(count)
    return f"{short[:-1]} {short[-1]}B" if short[-1].isalpha() else f"{short} B"


def _parameters(count: Mapping[str, int]) -> Iterable[tuple[str, str]]:
    yield "total", f"{count['total']:,}"
    yield "active", f"{count['active']:,} per token, {count['active_with_embedding']:,} with the embedding"
    yield "embedding", f"{count['embedding']:,}"
    for name, what in (("mtp", "predicting ahead"), ("vision", "vision")):
        if count.get(name):
            yield what, f"{count[name]:,}, beyond the total"


def _cache(cache: Mapping[str, Any], context: int) -> Iterable[tuple[str, str]]:
    for name, per_token in cache["bytes_per_token"].items():
        whole = size(cache["bytes_at_full_context"][name])
        yield name, f"{per_token:,} bytes per token, {whole} at {context:,} tokens"


def _text(found: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    tokenizer, template = found["tokenizer"], found["chat_template"]
    if tokenizer is None:
        yield "tokenizer", "none"
    elif "problem" in tokenizer:
        yield "tokenizer", f"not usable: {tokenizer['problem']}"
    else:
        names = {token: name for name, token in tokenizer["special_tokens"].items()}
        yield "tokenizer", f"{tokenizer['kind']}, {tokenizer['size']:,} tokens"
        for role in ("bos", "eos", "pad"):
            token = tokenizer[f"{role}_id"]
            yield role, "none" if token is None else f"{token} {names.get(token, '')}".rstrip()
        more = f" and {len(names) - SPECIAL_TOKENS} more" if len(names) > SPECIAL_TOKENS else ""
        yield "special tokens", ", ".join(list(names.values())[:SPECIAL_TOKENS]) + more
    yield "answers end at", ", ".join(map(str, found["eos_ids"])) or "no token that is named"
    if len(found["chat_templates"]) > 1:
        yield "chat templates", ", ".join(found["chat_templates"])
    lines = (template or "").splitlines()
    shown = [line if len(line) <= PIPE_COLUMNS // 2 else line[: PIPE_COLUMNS // 2] + " ..." for line in lines]
    more_lines = [f"({len(lines) - TEMPLATE_LINES} more lines)"] if len(lines) > TEMPLATE_LINES else []
    yield "chat template", "\n".join(shown[:TEMPLATE_LINES] + more_lines) if template else "none"


def _tensors(console: Console, kinds: list[dict[str, Any]]) -> None:
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("tensors")
    for name in ("count", "numbers", "bytes"):
        table.add_column(name, justify="right")
    total = {name: sum(row[name] for row in kinds) for name in ("tensors", "numbers", "bytes")}
    for row in [*kinds, *([{"kind": "all"} | total] if len(kinds) > 1 else [])]:
        table.add_row(f"  {row['kind']}", f"{row['tensors']:,}", f"{row['numbers']:,}", size(row["bytes"]))
    console.print(table)


def _files(console: Console, files: list[dict[str, Any]]) -> None:
    total = sum(file["bytes"] for file in files)
    rows = [(size(file["bytes"]), file["name"]) for file in files[:FILES]]
    if files[FILES:]:
        rows.append((size(sum(file["bytes"] for file in files[FILES:])), f"in {len(files) - FILES} more"))
    section(console, f"files, {size(total)}", rows)


def _exports(exports: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    for form, export in exports.items():
        if export["obstacle"] is not None:
            yield form, f"cannot be written: {export['obstacle']}"
        else:
            yield form, "\n".join(export["losses"]) or "loses nothing"
