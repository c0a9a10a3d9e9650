"""``fathom``: the verbs, and how errors become one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

import fathom
from fathom.cli import chat, convert, doctor, evaluate, generate, inspect, models, serve, study, train
from fathom.cli.console import prepare_streams
from fathom.errors import FathomError, Interrupted

ERROR_CODE, INTERRUPTED_CODE = 2, 130


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fathom {fathom.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """From raw text to a served mixture-of-experts language model."""


def make_app() -> typer.Typer:
    """Assemble the verbs. Each imports torch only when it runs."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_root)
    app.command("train")(train.train)
    app.command("generate")(generate.generate)
    app.command("chat")(chat.chat)
    app.command("serve")(serve.serve)
    app.command("evaluate")(evaluate.evaluate)
    app.command("models")(models.models)
    app.command("inspect")(inspect.inspect)
    app.command("convert")(convert.convert)
    app.command("study")(study.study)
    app.command("doctor")(doctor.doctor)
    return app


def main() -> None:
    """Run the command line."""
    prepare_streams()
    guarded(make_app())


def guarded(command: Callable[[], object]) -> None:
    """Run a command; a ``FathomError`` is one line on stderr and exit code 2, ``Interrupted`` one and 130.

    Anything else is a bug and keeps its traceback.
    """
    try:
        command()
    except Interrupted as error:
        _fail(error, INTERRUPTED_CODE)
    except FathomError as error:
        _fail(error, ERROR_CODE)
    except BrokenPipeError:  # the reader of a pipe left, e.g. head: nothing to report to
        sys.stderr.close()
        raise SystemExit(0) from None


def _fail(error: FathomError | Interrupted, code: int) -> None:
    line = " ".join(str(error).split())
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(code) from None
