"""``fathom evaluate``: bits per byte of held-out text, and public tasks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fathom.cli import model_options, options
from fathom.cli.console import print_json
from fathom.cli.display import duration, make_display
from fathom.cli.terminal import FilteredConsole
from fathom.errors import SpecError

if TYPE_CHECKING:
    from fathom.evals.accuracy import Accuracy
    from fathom.evals.bits_per_byte import BitsPerByte
    from fathom.inference.language_model import LanguageModel
    from fathom.inference.task_runs import TaskResult


def evaluate(
    model: options.Model,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", help="Measure this folder or file instead of the run's held-out text."),
    ] = None,
    text_column: options.TextColumn = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="gsm8k, hellaswag or truthfulqa_mc1; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first cases of each task.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write every prompt, answer and verdict of the tasks as JSON lines.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Tokens measured of each source at most.")] = 32_768,
    context: Annotated[int | None, typer.Option("--context", help="Window in tokens; the model's if left out.")] = None,
    device: options.Device = "auto",
    dtype: model_options.Dtype = "auto",
    weights: model_options.Weights = "plain",
) -> None:
    """Measure how many bits the model needs for one byte of text, by source, or how well it does at public tasks."""
    from fathom.evals.task_cases import find_task
    from fathom.inference.held_out import measure_held_out, measure_texts
    from fathom.inference.task_runs import check_records

    tasks = [find_task(name) for name in dict.fromkeys(task or [])]
    if not tasks and (limit is not None or out is not None):
        raise SpecError("--limit" if limit is not None else "--out", "is about tasks", "name one with --task")
    if out is not None:
        check_records(out)
    if text_column is not None and not text:
        raise SpecError("--text-column", "is about the data files of --text", "give --text FOLDER, or leave it out")
    opened = model_options.open_model(model, device, dtype, weights)
    texts: Mapping[str, BitsPerByte] = {}
    if text:
        texts, notes = measure_texts(opened, text, max_tokens=max_tokens, context=context, text_column=text_column)
        for note in notes:
            print(note, file=sys.stderr)
    elif not tasks:
        texts = measure_held_out(opened, max_tokens=max_tokens, context=context)
    model_options.announce(opened)
    results = _run([found.name for found in tasks], opened, limit, out)
    if as_json:
        print_json(_document(texts, results), indent=1)
        return
    if texts:
        _print_texts(texts)
    if results:
        _print_tasks(results)


def _run(names: Sequence[str], model: LanguageModel, limit: int | None, out: Path | None) -> list[TaskResult]:
    """Run the tasks one after another, showing how far each is on stderr."""
    from fathom.evals.task_cases import find_task
    from fathom.inference.task_runs import run_task, write_records

    display, results = make_display(FilteredConsole(stderr=True)), []
    try:
        for index, name in enumerate(names, start=1):
            display.stage(name, index, len(names))
            cache = options.cache_directory()
            results.append(run_task(model, find_task(name), cache_dir=cache, limit=limit, progress=display))
            display.finish(results[-1].seconds)
    finally:
        display.close()
    if out is not None:
        write_records(out, results)
    return results


def _document(texts: Mapping[str, BitsPerByte], results: Sequence[TaskResult]) -> dict[str, Any]:
    from fathom.evals.perplexity import perplexity

    document: dict[str, Any] = {}
    if texts:
        document["bits_per_byte"] = {
            source: {
                "bits_per_byte": measured.value,
                "token_perplexity": perplexity(measured),
                "tokens": measured.tokens,
                "bytes": measured.text_bytes,
            }
            for source, measured in texts.items()
        }
    if results:
        document["tasks"] = {result.task.name: result.summary() for result in results}
    return document


def _print_texts(texts: Mapping[str, BitsPerByte]) -> None:
    from fathom.evals.perplexity import perplexity

    table = _table("source", "bits per byte", "token perplexity", "tokens", "bytes")
    for source, measured in texts.items():
        row = (
            f"{measured.value:.3f}",
            f"{perplexity(measured):,.2f}",
            f"{measured.tokens:,}",
            f"{measured.text_bytes:,}",
        )
        table.add_row(source, *row)
    FilteredConsole().print(table)


def _print_tasks(results: Sequence[TaskResult]) -> None:
    table = _table("task", "cases", "right (95 %)", "by bytes (95 %)", "time")
    for result in results:
        normalised = "" if result.accuracy_norm is None else _share(result.accuracy_norm)
        count = str(result.accuracy.n)
        table.add_row(result.task.name, count, _share(result.accuracy), normalised, duration(result.seconds))
    console = FilteredConsole()
    console.print(table)
    shortened = sum(result.truncated for result in results)
    if shortened:
        console.print(f"{shortened} contexts were truncated on the left to fit the model")


def _share(accuracy: Accuracy) -> str:
    low, high = accuracy.interval
    return f"{accuracy.value:.1%} ({low:.0%}-{high:.0%})"


def _table(*names: str) -> Table:
    table = Table()
    for name in names:
        table.add_column(name, justify="right" if table.columns else "left", no_wrap=True)
    return table
