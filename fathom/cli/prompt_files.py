"""``fathom generate --input``: options, and the work as it is shown."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fathom.cli import model_options, sampling
from fathom.cli.display import make_display
from fathom.cli.terminal import FilteredConsole
from fathom.errors import Interrupted, SpecError
from fathom.locale import tr

if TYPE_CHECKING:
    from fathom.inference.language_model import LanguageModel
    from fathom.inference.prompt_files import Asking

Input = Annotated[
    Path | None,
    typer.Option(
        "--input",
        help="A file of prompts: .jsonl, .json, .csv or .parquet with a column of prompts, questions or messages, "
        "or a .txt of lines.",
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="With --input: the file of answers, each row with all its columns.")
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="With --input: leave out rows that cannot be used, and say which.")
]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        help="With --input: texts are messages to answer, or are continued; by default what the model is for.",
    ),
]


def check_options(
    source: Path | None, out: Path | None, prompt: str | None, suffix: str | None, echo: bool
) -> tuple[Path, Path]:
    """Return the files of prompts and answers; refuse one without the other, and options that do not go with them."""
    if source is None or out is None:
        missing, given = ("--input", "--out") if source is None else ("--out", "--input")
        raise SpecError(missing, f"is left out beside {given}", f"give both, e.g. {missing} FILE.jsonl")
    for name, value in (("--prompt", prompt), ("--suffix", suffix), ("--echo", echo or None)):
        if value is not None:
            raise SpecError(name, "does not go with --input", "leave one of them out")
    return source, out


def check_unused(skip_bad: bool, chat: bool | None) -> None:
    """Refuse options of a file of prompts where there is none."""
    if skip_bad or chat is not None:
        raise SpecError("--skip-bad" if skip_bad else "--chat", "is about a file of prompts", "give --input and --out")


def asking(
    source: Path,
    out: Path,
    sampled: dict[str, Any],
    stop: list[str] | None,
    schema: dict[str, Any] | None,
    *,
    chat: bool | None,
    skip_bad: bool,
) -> Asking:
    """Check the whole file, before a model is opened, and return how it is asked."""
    from fathom.inference.prompt_files import Asking, check_prompts
    from fathom.inference.request_preparation import ChatOptions

    check_prompts(source, out, skip_bad=skip_bad)
    return Asking(
        options=ChatOptions(stop=tuple(stop or ()), schema=schema),
        sampling=sampled,
        most=sampling.DEFAULT_TOKENS,
        chat=chat,
        skip_bad=skip_bad,
    )


def answer(model: LanguageModel, name: str, source: Path, out: Path, asked: Asking) -> None:
    """Answer a file, showing how far it is on stderr."""
    from fathom.inference.prompt_files import answer_file

    model_options.announce(model)
    display, started = make_display(FilteredConsole(stderr=True)), time.monotonic()
    display.stage("generate", 1, 1)
    try:
        answered = answer_file(model, source, out, asked, name=name, progress=display)
        display.finish(time.monotonic() - started)
    except KeyboardInterrupt:
        kept = tr("SIGINT arrived; finished rows are kept, and the same command goes on with the rest")
        raise Interrupted(kept) from None
    finally:
        display.close()
    for line in answered.left_out.lines("rows") if answered.left_out.problems else ():
        print(line, file=sys.stderr)
    before = f", {answered.kept} of them before" if answered.kept else ""
    print(f"{out}: {answered.rows} answers{before}", file=sys.stderr)
