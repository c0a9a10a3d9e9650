"""``fathom train``: run a recipe, or continue it."""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fathom.cli import options
from fathom.cli.display import duration, run_display
from fathom.cli.processes import joined
from fathom.errors import FathomError, SpecError
from fathom.locale import tr
from fathom.progress import NULL_PROGRESS, Progress

if TYPE_CHECKING:
    from fathom.parallel.processes import Processes
    from fathom.pipeline.context import RunPlan


RecipeFile = Annotated[
    Path | None,
    typer.Argument(help="A file, or a name of `fathom recipe list`; with --resume, the run in --out holds it."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Run directory; runs/NAME of the recipe if left out.")]
AllowChanges = Annotated[
    bool, typer.Option("--allow-changes", help="With --resume: accept changes of how a step learns, e.g. lr.")
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Call functions that the recipe names as rewards: code, run as you.")
]
Unsandboxed = Annotated[
    bool, typer.Option("--unsandboxed", help="Run programs of the model as you, with your files and network.")
]


def train(
    context: typer.Context,
    recipe: RecipeFile = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    restart: options.Restart = False,
    allow_changes: AllowChanges = False,
    text: options.Text = None,
    text_column: options.TextColumn = None,
    changes: options.Changes = None,
    until: Annotated[str | None, typer.Option("--until", help="Stop after this step.")] = None,
    device: options.Device = "auto",
    track: options.Track = None,
    allow_code: AllowCode = False,
    unsandboxed: Unsandboxed = False,
) -> None:
    """Run a recipe from raw text to a trained model and its report."""
    from fathom.pipeline.context import base_model
    from fathom.pipeline.run import run
    from fathom.pipeline.trust import CodeNotAllowedError, Trust
    from fathom.spec.step_results import STATE_FILE

    plan = _plan(recipe, out, overrides=changes or [], text=text or [], text_column=text_column)
    directory = out if out is not None else Path("runs") / plan.recipe.name
    try:
        with joined(device) as processes, _display(processes, _again(context, directory)) as display:
            begins = restart or not (resume or (directory / STATE_FILE).exists())
            if begins and (processes is None or processes.leads):
                _announce(plan, directory, device)
            ran = run(
                plan,
                directory,
                cache_dir=options.cache_directory(),
                resume=resume,
                restart=restart,
                allow_changes=allow_changes,
                until=until,
                device=device,
                progress=display,
                trust=Trust(code=allow_code, unsandboxed=unsandboxed),
                track=track or (),
                processes=processes,
            )
    except CodeNotAllowedError as error:
        again = options.command_line(context, allow_code=True)
        raise SpecError(error.path, error.problem, f"read the code, and if you trust it: {again}") from None
    if processes is not None and not processes.leads:
        return
    if until is not None and until != plan.recipe.steps[-1].name:
        again = _again(context, directory, until=None)
        display.message(tr("stopped after {step}; continue with: {command}", step=until, command=again))
        return
    _show_result(directory, display, ran=bool(ran), chats=base_model(plan.recipe) is not None)


def _display(processes: Processes | None, again: str) -> AbstractContextManager[Progress]:
    """Show progress on the process that leads."""
    return run_display(again) if processes is None or processes.leads else nullcontext(NULL_PROGRESS)


def _plan(recipe: Path | None, out: Path | None, **changed: Any) -> RunPlan:
    """Return the plan of a recipe, or the one that a run holds, with what the command line changes."""
    from fathom.pipeline.recipe import load_run_plan
    from fathom.pipeline.recorded_plan import load_recorded_plan

    if recipe is not None:
        return load_run_plan(recipe, **changed)
    if out is not None:
        return load_recorded_plan(out, **changed)
    raise SpecError("RECIPE", "is missing", "name a recipe's .toml, or continue a run: --resume --out RUN")


def _again(context: typer.Context, directory: Path, **changed: object) -> str:
    """Return the command that goes on: the run holds its recipe, text and changes."""
    held = {"recipe": None, "text": None, "text_column": None, "changes": None, "allow_changes": False}
    return options.command_line(context, **held, **changed, out=directory, resume=True, restart=False)


def _show_result(directory: Path, display: Progress, *, ran: bool, chats: bool) -> None:
    if not ran:
        display.message(tr("nothing to do: every step of {run} is done", run=directory))
    report = directory / "report.html"
    if report.exists():
        display.message(tr("report: {file}", file=report))
        model = shlex.quote(str(directory))
        words = f"chat {model}" if chats else f'generate {model} --prompt "Once upon a time"'
        display.message(tr("next:   {command}", command=f"fathom {words}"))


def _announce(plan: RunPlan, directory: Path, device: str) -> None:
    """Print what the run will take in one line, reckoned without taking a step.

    Raises:
        SpecError: it needs more memory or disk than is free.
    """
    from fathom.cli.recipe_check import refuse
    from fathom.model.device import resolve_device
    from fathom.pipeline.forecast.forecast import Forecaster
    from fathom.pipeline.forecast.totals import summary

    resolved = resolve_device(device)
    try:
        forecast = Forecaster(plan, options.cache_directory(), resolved, measure=False).forecast(directory)
    except FathomError:  # the run says what is wrong, in its own order
        return
    refuse(plan.recipe.name, forecast.faults())
    time = duration(forecast.seconds)
    print(tr("plan: {plan}; roughly {time} here (fathom recipe check measures it)", plan=summary(forecast), time=time))
