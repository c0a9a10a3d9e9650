"""``fathom evaluate``: bits per byte of held-out text, and tasks, of one model or several."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fathom.cli import evaluate_harness, evaluate_options, model_options, options
from fathom.cli.console import print_json
from fathom.cli.display import duration, make_display
from fathom.cli.terminal import FilteredConsole
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
    lm_eval: evaluate_harness.HarnessNames = None,
    include_path: evaluate_harness.IncludePath = None,
    num_fewshot: evaluate_harness.NumFewshot = None,
    apply_chat_template: evaluate_harness.ApplyChatTemplate = None,
    out: evaluate_options.Outs = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of tasks as Markdown.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the table of tasks as CSV.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Tokens measured of each source at most.")] = 32_768,
    context: Annotated[int | None, typer.Option("--context", help="Window in tokens; the model's if left out.")] = None,
    adapter: model_options.Adapter = None,
    device: options.Device = "auto",
    dtype: model_options.Dtype = "auto",
    weights: model_options.Weights = "auto",
) -> None:
    """Measure how many bits a model needs for one byte of text, or how well models do at tasks.

    Several models are compared on the same cases: a table with intervals, and the difference to the first.
    """
    from fathom.inference.loading import check_source

    paths = {name if adapter is None else f"{name} with {adapter}": name for name in models}
    for name in models:
        check_source(name)

    def opener(name: str) -> LanguageModel:
        return model_options.open_model(paths[name], device, dtype, weights, adapter=adapter)

    if lm_eval is not None:
        others = {"--task": task, "--problems": problems, "--text": text, "--split": split, "--cases": cases}
        asking = evaluate_harness.Asking(lm_eval, include_path, num_fewshot, limit, apply_chat_template)
        harness = evaluate_harness.open_run(asking, {**others, "--csv": as_csv}, paths, out or (), (weights, dtype))
        evaluate_harness.show(harness.measure(opener), as_json=as_json)
        return
    evaluate_harness.check_absent_options(include_path, num_fewshot)
    table = as_markdown or as_csv
    asked = evaluate_options.asked(task, problems, split, cases, limit, out, table, apply_chat_template)
    evaluate_options.check_text(text, text_column)

    def measure_texts(opened: LanguageModel) -> Mapping[str, BitsPerByte]:
        wanted = text or not asked.tasks
        return _measured_texts(opened, text, text_column, max_tokens, context) if wanted else {}

    measured = _measure(paths, asked, opener, measure_texts, (weights, dtype))
    _show(measured, as_json=as_json, as_markdown=as_markdown, as_csv=as_csv)


@dataclass(frozen=True, slots=True)
class _Measured:
    """What was measured of texts and of tasks, by model, and the cells of the table of tasks."""

    texts: Mapping[str, Mapping[str, BitsPerByte]]
    results: Mapping[str, Sequence[TaskResult]]
    cells: Sequence[Cell]


def _measure(
    paths: Mapping[str, str],
    asked: evaluate_options.Asked,
    opener: Callable[[str], LanguageModel],
    measure_texts: Callable[[LanguageModel], Mapping[str, BitsPerByte]],
    given: Sequence[str],
) -> _Measured:
    """Measure every model, and write the files that are asked for."""
    from fathom.inference.comparison import compare_results, measure

    texts: dict[str, Mapping[str, BitsPerByte]] = {}
    results: dict[str, list[TaskResult]] = {name: [] for name in paths}

    def before(name: str, opened: LanguageModel) -> None:
        if found := measure_texts(opened):
            texts[name] = found
        model_options.announce(opened)

    display = make_display(FilteredConsole(stderr=True))
    wanted = asked.open(list(paths.values()))
    try:
        with asked.journal(list(paths), wanted, given) as journal:
            chat = asked.apply_chat_template
            for name, result in measure(
                list(paths), wanted, opener, display, journal, before=before, apply_chat_template=chat
            ):
                results[name].append(result)
            display.close()
            cells = compare_results(results)
            asked.write(cells, results, journal)
    except KeyboardInterrupt:
        raise evaluate_options.interruption(asked.out) from None
    finally:
        display.close()
    return _Measured(texts, results, cells)


def _show(measured: _Measured, *, as_json: bool, as_markdown: bool, as_csv: bool) -> None:
    from fathom.evals.comparison import comma_separated, markdown

    if as_json:
        print_json(_documents(measured.texts, measured.results, measured.cells), indent=1)
    elif as_markdown or as_csv:
        print(markdown(measured.cells) if as_markdown else comma_separated(measured.cells), end="")
    else:
        _print(measured.texts, measured.results, measured.cells)


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
