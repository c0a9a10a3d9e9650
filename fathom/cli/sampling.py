"""Sampling options of ``generate`` and ``chat``, and how text is written as it is drawn."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fathom.cli.terminal import unfiltered
from fathom.errors import DataError, explain_os_error

if TYPE_CHECKING:
    from fathom.inference.chat_session import ChatAnswer, ChatStream

DEFAULT_TOKENS = 256
DIM, UNDIM = "\x1b[2m", "\x1b[22m"

MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", help=f"Tokens to draw at most; {DEFAULT_TOKENS}, or what fits.")
]
Temperature = Annotated[float, typer.Option("--temperature", help="0 always takes the likeliest token.")]
TopK = Annotated[int, typer.Option("--top-k", help="Draw from the k likeliest tokens; 0 from all.")]
TopP = Annotated[float, typer.Option("--top-p", help="Draw from the fewest tokens that reach this probability.")]
MinP = Annotated[float, typer.Option("--min-p", help="Drop tokens below this share of the likeliest one.")]
Seed = Annotated[int | None, typer.Option("--seed", help="The same seed draws the same text.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="A text that ends the answer; may be repeated.")]
Schema = Annotated[Path | None, typer.Option("--schema", help="A file with a JSON Schema that the answer obeys.")]


def read_schema(path: Path | None) -> dict[str, Any] | None:
    """Return the JSON Schema in a file, or None where none is given."""
    if path is None:
        return None
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"--schema {path}: cannot be read, {explain_os_error(error)}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"--schema {path}: is not JSON ({error}); correct it") from None
    if not isinstance(schema, dict):
        raise DataError(f'--schema {path}: holds no object; give a JSON Schema such as {{"type": "object"}}')
    return schema


def write_stream(stream: ChatStream, stopped: Callable[[], bool] = lambda: False) -> ChatAnswer:
    """Write an answer to stdout as it is drawn, and return it; reasoning is dimmed on a terminal.

    Where ``stopped`` says so it is cut off, and what there is returned.
    """
    dims = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    before = None
    for delta in stream:
        if stopped():
            stream.close()
        if delta.channel != before:
            _style(UNDIM if dims and before == "thinking" else "")
            _write("" if before is None else "\n\n")
            _style(DIM if dims and delta.channel == "thinking" else "")
            before = delta.channel
        _write(delta.text if delta.tool_call is None else f"{delta.tool_call.name}({delta.tool_call.arguments})")
    _style(UNDIM if dims and before == "thinking" else "")
    print(flush=True)
    return stream.answer


def _style(code: str) -> None:
    unfiltered(sys.stdout).write(code)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
