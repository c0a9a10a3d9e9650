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
from fathom.locale import tr
from fathom.progress import size

TEMPLATE_LINES = 4
SPECIAL_TOKENS = 8
FILES = 12


def inspect(
    model: options.ModelOrData,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs, with the whole spec.")] = False,
    kind: Annotated[str, typer.Option("--kind", help="Read data as: conversations, preferences or problems.")] = "",
    format_name: options.Format = None,
    field: options.Field = None,
) -> None:
    """Say what a model is: shape, parameters, tensors, cache, tokenizer, exports; or what the columns of data mean."""
    from fathom.inference.inspection import inspect_source
    from fathom.inference.loading import open_source
    from fathom.pipeline.data_inspection import holds_data

    if kind or format_name or field or holds_data(Path(model)):
        inspect_data.inspect(Path(model), as_json=as_json, kind=kind, format_name=format_name or "", fields=field or [])
        return
    with LoadProgress(model) as progress:
        found = inspect_source(open_source(model, progress, cache_dir=options.cache_directory()))
    if as_json:
        print_json(found)
        return
    console = report_console()
    place = {"family": found["family"], "format": found["form"], "path": found["path"]}
    console.print(Text.assemble((found["name"], "bold"), "  " + tr("{family}, format {format}, {path}", **place)))
    for title, rows in (
        (tr("model"), ((tr(name), value) for name, value in found["summary"].items())),
        (tr("parameters"), _parameters(found["parameters"])),
        (tr("weights on a CPU"), _weights(found["on_cpu"])),
        (tr("cache"), _cache(found["cache"], found["spec"]["max_position_embeddings"])),
        (tr("text"), _text(found)),
    ):
        section(console, title, rows)
    _tensors(console, found["tensors"])
    _files(console, found["files"])
    section(console, tr("exports"), _exports(found["exports"]))


def _parameters(count: Mapping[str, int]) -> Iterable[tuple[str, str]]:
    whole = f"{count['active_with_embedding']:,}"
    yield tr("total"), f"{count['total']:,}"
    yield tr("active"), tr("{count} per token, {whole} with the embedding", count=f"{count['active']:,}", whole=whole)
    yield tr("embedding"), f"{count['embedding']:,}"
    for name, what in (("mtp", tr("predicting ahead")), ("vision", tr("vision"))):
        if count.get(name):
            yield what, tr("{count}, beyond the total", count=f"{count[name]:,}")


def _weights(on_cpu: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if on_cpu["unpacked"] is not None:
        yield tr("native library"), tr("none, so all is widened: {reason}", reason=on_cpu["unpacked"])
    for form in on_cpu["forms"]:
        count, nbytes, stored = f"{len(form['parameters']):,}", size(form["nbytes"]), ", ".join(form["stored"])
        if form["rounded"]:
            text = tr(
                "{size}, {count} of {stored}, rounded by about 0.4 % of the largest of 32 numbers at most",
                size=nbytes,
                count=count,
                stored=stored,
            )
        elif form["stored"]:
            text = tr("{size}, {count} of {stored}, as they are", size=nbytes, count=count, stored=stored)
        else:
            text = tr("{size}, {count} parameters", size=nbytes, count=count)
        yield form["format"], text


def _cache(cache: Mapping[str, Any], context: int) -> Iterable[tuple[str, str]]:
    for name, per_token in cache["bytes_per_token"].items():
        whole = size(cache["bytes_at_full_context"][name])
        each = {"bytes": f"{per_token:,}", "whole": whole, "context": f"{context:,}"}
        yield name, tr("{bytes} bytes per token, {whole} at {context} tokens", **each)


def _text(found: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    tokenizer, template = found["tokenizer"], found["chat_template"]
    if tokenizer is None:
        yield tr("tokenizer"), tr("none")
    elif "problem" in tokenizer:
        yield tr("tokenizer"), tr("not usable: {problem}", problem=tokenizer["problem"])
    else:
        names = {token: name for name, token in tokenizer["special_tokens"].items()}
        yield tr("tokenizer"), tr("{kind}, {size} tokens", kind=tokenizer["kind"], size=f"{tokenizer['size']:,}")
        for role in ("bos", "eos", "pad"):
            token = tokenizer[f"{role}_id"]
            yield role, tr("none") if token is None else f"{token} {names.get(token, '')}".rstrip()
        more = tr(" and {count} more", count=len(names) - SPECIAL_TOKENS) if len(names) > SPECIAL_TOKENS else ""
        yield tr("special tokens"), ", ".join(list(names.values())[:SPECIAL_TOKENS]) + more
    yield tr("answers end at"), ", ".join(map(str, found["eos_ids"])) or tr("no token that is named")
    if len(found["chat_templates"]) > 1:
        yield tr("chat templates"), ", ".join(found["chat_templates"])
    lines = (template or "").splitlines()
    shown = [line if len(line) <= PIPE_COLUMNS // 2 else line[: PIPE_COLUMNS // 2] + " ..." for line in lines]
    left = len(lines) - TEMPLATE_LINES
    more_lines = [tr("({count} more lines)", count=left)] if left > 0 else []
    yield tr("chat template"), "\n".join(shown[:TEMPLATE_LINES] + more_lines) if template else tr("none")


def _tensors(console: Console, kinds: list[dict[str, Any]]) -> None:
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(tr("tensors"))
    for name in (tr("count"), tr("numbers"), tr("bytes")):
        table.add_column(name, justify="right")
    total = {name: sum(row[name] for row in kinds) for name in ("tensors", "numbers", "bytes")}
    for row in [*kinds, *([{"kind": tr("all")} | total] if len(kinds) > 1 else [])]:
        table.add_row(f"  {row['kind']}", f"{row['tensors']:,}", f"{row['numbers']:,}", size(row["bytes"]))
    console.print(table)


def _files(console: Console, files: list[dict[str, Any]]) -> None:
    total = sum(file["bytes"] for file in files)
    rows = [(size(file["bytes"]), file["name"]) for file in files[:FILES]]
    if files[FILES:]:
        more = tr("in {count} more", count=len(files) - FILES)
        rows.append((size(sum(file["bytes"] for file in files[FILES:])), more))
    section(console, tr("files, {size}", size=size(total)), rows)


def _exports(exports: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    for form, export in exports.items():
        if export["obstacle"] is not None:
            yield form, tr("cannot be written: {problem}", problem=export["obstacle"])
        else:
            yield form, "\n".join(export["losses"]) or tr("loses nothing")
