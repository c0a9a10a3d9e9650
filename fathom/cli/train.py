"""``fathom train``: run a recipe, or continue it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fathom.cli import options
from fathom.cli.display import make_display
from fathom.cli.terminal import FilteredConsole
from fathom.errors import Interrupted


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/quickstart.toml.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Run directory; runs/NAME of the recipe if left out.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Remove the run in --out and begin again.")] = False,
    allow_changes: Annotated[
        bool,
        typer.Option("--allow-changes", help="With --resume: accept changes of how a step learns, e.g. lr."),
    ] = False,
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="Train on this folder of text instead; may be repeated.")
    ] = None,
    text_column: options.TextColumn = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field, e.g. pretrain.train.total_tokens=500000.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Stop after this step.")] = None,
    device: options.Device = "auto",
) -> None:
    """Run a recipe from raw text to a trained model and its report."""
    from fathom.pipeline.context import base_model
    from fathom.pipeline.recipe import load_run_plan
    from fathom.pipeline.run import run

    plan = load_run_plan(recipe, overrides=changes or [], text=text or [], text_column=text_column)
    directory = out if out is not None else Path("runs") / plan.recipe.name
    again = f"fathom train {recipe} --out {directory} --resume"
    display = make_display(FilteredConsole())
    try:
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
        )
    except Interrupted as error:
        raise Interrupted(f"{error}; continue with: {again}") from None
    finally:
        display.close()
    if not ran:
        display.message(f"nothing to do: every step of {directory} is done")
    report = directory / "report.html"
    if report.exists():
        display.message(f"report: {report}")
        chats = base_model(plan.recipe) is not None
        words = f"chat {directory}" if chats else f'generate {directory} --prompt "Once upon a time"'
        display.message(f"next:   fathom {words}")
