"""``fathom``: the verbs, and how errors become one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

import fathom
from fathom.cli import (
    cache,
    chat,
    convert,
    doctor,
    evaluate,
    finetune,
    generate,
    inspect,
    models,
    recipe,
    serve,
    study,
    train,
)
from fathom.cli.console import prepare_streams
from fathom.cli.language import choose_language, translate_help, translated_frame
from fathom.cli.terminal import filter_streams, unfiltered, unfiltered_stdout
from fathom.errors import FathomError, Interrupted, SpecError, SpecErrors
from fathom.locale import ENGLISH, speak, tr
from fathom.terminal import one_line

ABORTED_CODE, ERROR_CODE, INTERRUPTED_CODE = 1, 2, 130
FOR_PROGRAMS = ("as_json", "as_csv", "as_markdown")
"""Parameters of verbs that ask for output in a form for programs."""


def _version(asked: bool) -> None:
    if asked:
        print(f"fathom {fathom.__version__}")
        raise typer.Exit


class _StyledHelp:
    """Prints help, which holds nothing from outside, in typer's style."""

    def format_help(self, *given: Any) -> None:
        with unfiltered_stdout(), translated_frame():
            super().format_help(*given)  # type: ignore[misc]

    def get_usage(self, *given: Any) -> str:
        usage: str = super().get_usage(*given)  # type: ignore[misc]
        return usage.replace("Usage:", tr("Usage:"), 1)

    def get_help_option(self, *given: Any) -> Any:
        option = super().get_help_option(*given)  # type: ignore[misc]
        if option is not None:
            option.help = tr("Show this message and exit.")
        return option


class _Verb(_StyledHelp, TyperCommand):
    """One verb. What it prints for programs is English; a field that an option sets is named as the option."""

    def invoke(self, ctx: Any) -> Any:
        if any(ctx.params.get(name) for name in FOR_PROGRAMS):
            speak(ENGLISH)
        try:
            return super().invoke(ctx)
        except SpecError as error:
            option = self._option(error.path, ctx)
            if option is None:
                raise
            raise error.at(option) from None

    def _option(self, field: str, ctx: Any) -> str | None:
        """Return the option as typed that set a field, if one did."""
        source = ctx.get_parameter_source(field)
        if source is None or source.name != "COMMANDLINE":
            return None
        names = (name for each in self.params if each.name == field for name in each.opts if name.startswith("--"))
        return next(names, None)


class _Group(_StyledHelp, TyperGroup):
    """Verbs about one thing, such as ``fathom recipe fields``."""


class _Verbs(_StyledHelp, TyperGroup):
    """All verbs. A command line that is none of them becomes one line, as every error does."""

    def main(self, *given: Any, **more: Any) -> Any:
        """Run a verb; exit as typer does."""
        exits = more.get("standalone_mode", True)
        more["standalone_mode"] = False
        try:
            code = super().main(*given, **more)
        except typer.Abort:
            _fail(tr("aborted"), ABORTED_CODE)
        except Exception as error:
            if not hasattr(error, "format_message"):  # what typer raises of a command line, from one version or another
                raise
            _fail(one_line(_usage_message(error)), ERROR_CODE)
        if exits:
            sys.exit(code or 0)
        return code


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """From raw text to a served mixture-of-experts language model."""


def make_app() -> typer.Typer:
    """Assemble the verbs. Each imports torch only when it runs."""
    app = typer.Typer(cls=_Verbs, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_root)
    for verb in (
        train.train,
        finetune.finetune,
        generate.generate,
        chat.chat,
        serve.serve,
        evaluate.evaluate,
        models.models,
        inspect.inspect,
        convert.convert,
        study.study,
        doctor.doctor,
    ):
        app.command(cls=_Verb)(verb)
    app.add_typer(_group(cache.VERBS, cache.HELP), name="cache")
    app.add_typer(_group(recipe.VERBS, recipe.HELP), name="recipe")
    return app


def _group(verbs: Iterable[Callable[..., None]], text: str) -> typer.Typer:
    group = typer.Typer(cls=_Group, help=text, no_args_is_help=True, add_completion=False)
    for verb in verbs:
        group.command(verb.__name__.rstrip("_"), cls=_Verb)(verb)
    return group


def main() -> None:
    """Run the command line."""
    prepare_streams()
    filter_streams()
    guarded(_run)


def _run() -> None:
    choose_language()
    command = typer.main.get_command(make_app())
    translate_help(command)
    command()


def guarded(command: Callable[[], object]) -> None:
    """Run a command; a ``FathomError`` is one line on stderr and exit code 2, ``Interrupted`` one and 130.

    Anything else is a bug and keeps its traceback.
    """
    try:
        command()
    except Interrupted as error:
        print(tr("stopped: {message}", message=one_line(str(error))), file=sys.stderr)
        raise SystemExit(INTERRUPTED_CODE) from None
    except SpecErrors as error:
        _fail(str(error), ERROR_CODE)
    except FathomError as error:
        _fail(one_line(str(error)), ERROR_CODE)
    except BrokenPipeError:  # the reader of a pipe left, e.g. head: nothing to report to
        unfiltered(sys.stderr).close()
        raise SystemExit(0) from None


def _usage_message(error: Any) -> str:
    """Return what is wrong with a command line, and where to look; nothing where help was printed instead."""
    message = str(error.format_message())
    context = getattr(error, "ctx", None)
    if not message or context is None:
        return message
    return tr("{problem}; see {command} --help", problem=message.rstrip("."), command=context.command_path)


def _fail(message: str, code: int) -> NoReturn:
    if message:
        print(tr("error: {message}", message=message), file=sys.stderr)
    raise SystemExit(code) from None
