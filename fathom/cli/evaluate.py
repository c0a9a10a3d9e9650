"""``fathom evaluate``: bits per byte of held-out text, and tasks, of one model or several."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fathom.cli import evaluate_options, model_options, options
from fathom.cli.console import print_json
from fathom.cli.display import duration, make_display
from fathom.cli.terminal import FilteredConsole
from fathom.errors import Interrupted
from fathom.locale import tr

if TYPE_CHECKING:
    from fathom.evals.accuracy import Accuracy
    from fathom.evals.bits_per_byte import BitsPerByte
    from fathom.evals.comparison import Cell
    from fathom.inference.language_model import LanguageModel
    from fathom.inference.task_runs import TaskResult


def evaluate(
    models: evaluate_options.Models,
    text: evaluate_options.Text = None,
    text_column: options.TextColumn = None,
    task: evaluate_options.Tasks = None,
    problems: evaluate_options.Problems = None,
    split: evaluate_options.SplitName = None,
    cases: evaluate_options.Cases = None,
    limit: evaluate_options.Limit = None,
    out: evaluate_options.Outs = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of tasks as Markdown.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the table of tasks as CSV.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Tokens measured of each source at most.")] = 32_768,
    context: Annotated[int | None, typer.Option("--context", help="Window in tokens; the model's if left out.")] = None,
    adapter: model_options.Adapter = None,
    device: options.Device = "auto",
    dtype: model_options.Dtype = "auto",
    weights: model_options.Weights = "plain",
) -> None:
    """Measure how many bits a model needs for one byte of text, or how well models do at tasks.

    Several models are compared on the same cases: a table with intervals, and the difference to the first.
    """
    from fathom.evals.comparison import comma_separated, markdown
    from fathom.inference.comparison import compare_results, measure

    paths = {name if adapter is None else f"{name} with {adapter}": name for name in models}
    names = list(paths)
    asked = evaluate_options.asked(task, problems, split, cases, limit, out, as_markdown or as_csv)
    evaluate_options.check_text(text, text_column)
    texts: dict[str, Mapping[str, BitsPerByte]] = {}
    results: dict[str, list[TaskResult]] = {name: [] for name in names}

    def measure_text(name: str, opened: LanguageModel) -> None:
        if text or not asked.tasks:
            texts[name] = _measured_texts(opened, text, text_column, max_tokens, context)
        model_options.announce(opened)

    display = make_display(FilteredConsole(stderr=True))
    wanted = asked.open()
    try:
        with asked.journal(names, wanted, weights, dtype) as journal:

            def opener(name: str) -> LanguageModel:
                return model_options.open_model(paths[name], device, dtype, weights, adapter=adapter)

            for name, result in measure(names, wanted, opener, display, journal, before=measure_text):
                results[name].append(result)
            display.close()
            cells = compare_results(results)
            asked.write(cells, results, journal)
    except KeyboardInterrupt:
        raise Interrupted(asked.interrupted) from None
    finally:
        display.close()
    if as_json:
        print_json(_documents(texts, results, cells), indent=1)
    elif as_markdown or as_csv:
        print(markdown(cells) if as_markdown else comma_separated(cells), end="")
    else:
        _print(texts, results, cells)


def _measured_texts(
    opened: LanguageModel, text: list[Path] | None, text_column: str | None, max_tokens: int, context: int | None
) -> Mapping[str, BitsPerByte]:
    from fathom.inference.held_out import measure_held_out, measure_texts

    if not text:
        return measure_held_out(opened, max_tokens=max_tokens, context=context)
    found, notes = measure_texts(opened, text, max_tokens=max_tokens, context=context, text_column=text_column)
    for note in notes:
        print(note, file=sys.stderr)
    return found


def _print(
    texts: Mapping[str, Mapping[str, BitsPerByte]], results: Mapping[str, Sequence[TaskResult]], cells: Sequence[Cell]
) -> None:
    for name, measured in texts.items():
        if len(results) > 1:
            print(f"{name}:")
        _print_texts(measured)
    listed = [result for each in results.values() for result in each]
    if not listed:
        return
    if len(results) == 1:
        _print_tasks(listed)
        return
    from fathom.evals.comparison import HEADINGS, text_rows

    table = Table()
    for number, heading in enumerate(HEADINGS):
        table.add_column(tr(heading), justify="right" if number > 1 else "left", overflow="fold")
    for row in text_rows(cells):
        table.add_row(*row)
    FilteredConsole().print(table)
    print(tr("intervals: Wilson; differences: paired, on the same cases (Newcombe 1998, method 10)"), file=sys.stderr)


def _documents(
    texts: Mapping[str, Mapping[str, BitsPerByte]], results: Mapping[str, Sequence[TaskResult]], cells: Sequence[Cell]
) -> dict[str, Any]:
    documents = {name: _document(texts.get(name, {}), found) for name, found in results.items()}
    if len(documents) == 1:
        return next(iter(documents.values()))
    return {"models": documents, "comparison": [cell.row() for cell in cells]}


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

    table = _table(tr("source"), tr("bits per byte"), tr("token perplexity"), tr("tokens"), tr("bytes"))
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
    table = _table(tr("task"), tr("cases"), tr("right (95 %)"), tr("by bytes (95 %)"), tr("time"))
    for result in results:
        normalised = "" if result.accuracy_norm is None else _share(result.accuracy_norm)
        count = str(result.accuracy.n)
        table.add_row(result.task.name, count, _share(result.accuracy), normalised, duration(result.seconds))
    console = FilteredConsole()
    console.print(table)
    shortened = sum(result.truncated for result in results)
    if shortened:
        console.print(tr("{count} contexts were truncated on the left to fit the model", count=shortened))


def _share(accuracy: Accuracy) -> str:
    low, high = accuracy.interval
    return f"{accuracy.value:.1%} ({low:.0%}-{high:.0%})"


def _table(*names: str) -> Table:
    table = Table()
    for name in names:
        table.add_column(name, justify="right" if table.columns else "left", no_wrap=True)
    return table
