"""``fathom recipe check``: everything that is wrong with a recipe, and what it will take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fathom.cli import options
from fathom.errors import FathomError, SpecError, SpecErrors
from fathom.locale import tr
from fathom.progress import amount, size

if TYPE_CHECKING:
    from rich.console import Console

    from fathom.pipeline.context import RunPlan
    from fathom.pipeline.forecast.totals import Forecast, StepForecast
    from fathom.pipeline.trust import Trust

_BASES = {"measured": "", "estimated": "~", "unknown": ""}


def check(
    recipe: Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/quickstart.toml.")],
    text: options.Text = None,
    text_column: options.TextColumn = None,
    changes: options.Changes = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run directory whose disk counts; runs/NAME of the recipe if left out.")
    ] = None,
    device: options.Device = "auto",
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Import functions that the recipe names as rewards: code, run as you.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a recipe and say what it takes: parameters, memory, tokens, time on this machine, disk."""
    from fathom.cli.console import print_json
    from fathom.cli.sections import report_console
    from fathom.pipeline.recipe import load_run_plan
    from fathom.pipeline.trust import Trust

    plan = load_run_plan(recipe, overrides=changes or [], text=text or [], text_column=text_column)
    directory = out if out is not None else Path("runs") / plan.recipe.name
    forecast = checked_forecast(plan, directory, device=device, trust=Trust(code=allow_code))
    if as_json:
        print_json(forecast.document() | {"defaults": dict(plan.defaults)})
    else:
        print_forecast(report_console(), forecast)
        print_defaults(report_console(), plan)
    refuse(recipe.name, forecast.faults())


def checked_forecast(plan: RunPlan, out: Path, *, device: str, trust: Trust) -> Forecast:
    """Return the forecast of a plan without faults.

    Raises:
        SpecError: all its faults in one message.
    """
    from fathom.model.device import resolve_device
    from fathom.pipeline.forecast.forecast import Forecaster
    from fathom.pipeline.preflight import export_notes, schedule_warnings
    from fathom.pipeline.recipe_faults import recipe_faults
    from fathom.pipeline.trust import untried_functions

    found: list[FathomError] = list(recipe_faults(plan, (), trust, options.cache_directory()))
    notes = list(export_notes(plan.recipe))
    try:
        notes += schedule_warnings(plan, ())
        notes += untried_functions(plan.recipe, trust)
    except FathomError as error:
        found.append(error)
    refuse(plan.recipe.name, found)
    return Forecaster(plan, options.cache_directory(), resolve_device(device)).forecast(out, notes=notes)


def refuse(name: str, faults: Sequence[FathomError]) -> None:
    """Raise the only fault, or several as one error; nothing for none."""
    if len(faults) > 1:
        raise SpecErrors(name, [_located(fault) for fault in faults])
    if faults:
        raise faults[0]


def _located(fault: FathomError) -> SpecError:
    if isinstance(fault, SpecError):
        return fault
    place, _, rest = str(fault).partition(": ")
    problem, _, remedy = rest.rpartition("; ")
    return SpecError(place, problem or rest, remedy or "correct it")


def print_forecast(console: Console, forecast: Forecast) -> None:
    """Print a table of the steps, the totals beside what is free, and what remains to be said."""
    from rich.table import Table

    from fathom.cli.display import duration
    from fathom.cli.sections import section
    from fathom.pipeline.forecast.totals import summary

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in (tr("step"), tr("reads"), tr("leaves")):
        table.add_column(name)
    counts = (tr("tokens a step"), tr("steps"), tr("tokens"), tr("passes"))
    for name in (*counts, tr("memory"), tr("disk"), tr("time")):
        table.add_column(name, justify="right")
    for step in forecast.steps:
        table.add_row(step.name, step.reads, step.leaves, *_figures(step))
    console.print(table)
    unknown = [
        step.name for step in forecast.steps if step.basis == "unknown" and step.kind not in ("report", "sample")
    ]
    spent = {"time": duration(forecast.seconds), "device": forecast.device}
    time = tr("about {time} on this machine ({device})", **spent)
    if unknown:
        time = tr("about {time} on this machine ({device}), without {steps}", steps=", ".join(unknown), **spent)
    rows = [
        (tr("plan"), summary(forecast)),
        (tr("time"), time),
        (tr("memory"), _of_free(forecast.memory_bytes, forecast.free_memory_bytes)),
        (tr("disk"), _of_free(forecast.disk_bytes, forecast.free_disk_bytes)),
        *((tr("note"), note) for note in forecast.notes),
    ]
    section(console, forecast.recipe, rows)
    said = tr(
        "times of training steps were measured on a few of them; ~ marks estimates, which may be off by a "
        "factor of 2, of sampling 3"
    )
    console.print(said, style="dim")


def _of_free(most: float, free: float) -> str:
    return tr("{most} at most, {free} free", most=size(most), free=size(free))


def print_defaults(console: Console, plan: RunPlan) -> None:
    """Print the fields that the recipe leaves out to other parts of it and the model's family, as it could say them."""
    from rich.text import Text

    if not plan.defaults:
        return
    console.print()
    console.print("left out of the recipe, and taken from the rest of it and the model's family", style="bold")
    for path, value in plan.defaults:
        console.print(Text(f"  {path} = {value}"), soft_wrap=not console.is_terminal)


def _figures(step: StepForecast) -> list[str]:
    from fathom.cli.display import duration

    time = "" if step.seconds is None else _BASES[step.basis] + duration(step.seconds)
    return [
        *("" if value is None else amount(value) for value in (step.tokens_per_step, step.steps, step.tokens)),
        "" if step.passes is None else f"{step.passes:.3g}",
        "" if step.memory_bytes is None else size(step.memory_bytes),
        size(step.disk_bytes) if step.disk_bytes else "",
        time,
    ]
