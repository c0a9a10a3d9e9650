"""``fathom convert``: write a model in another form."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fathom.cli import options
from fathom.cli.display import amount, make_display
from fathom.cli.load_progress import LoadProgress


def convert(
    model: options.Model,
    destination: Annotated[Path, typer.Argument(help="What is written: a directory, or a .gguf file.")],
    to: Annotated[str, typer.Option("--to", help="hf, gguf or fathom.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="float32, float16, bfloat16, or fp8 (hf), F32, F16, BF16, Q8_0 or Q4_0 (gguf); "
            "left out, what loses nothing.",
        ),
    ] = None,
    max_shard_bytes: Annotated[
        int | None, typer.Option("--max-shard-bytes", help="Split weights beyond this over several files (hf).")
    ] = None,
) -> None:
    """Write a model as a Hugging Face directory, a GGUF file or a checkpoint of Fathom, in bounded memory."""
    from fathom.inference.conversion import Conversion
    from fathom.inference.loading import open_source

    with LoadProgress(model) as progress:
        source = open_source(model, progress, cache_dir=options.cache_directory())
    planned = Conversion.prepare(source, destination, to, dtype=dtype, max_shard_bytes=max_shard_bytes)
    for note in planned.warnings:
        print(f"note: {note}", file=sys.stderr)
    display = make_display(Console(stderr=True))
    try:
        display.stage("convert", 1, 1)
        written = planned.run(display)
    finally:
        display.close()
    files = [written] if written.is_file() else [path for path in written.iterdir() if path.is_file()]
    kind = f", {planned.dtype}" if planned.dtype is not None else ""
    print(f"{written}: format {planned.format}{kind}, {amount(sum(path.stat().st_size for path in files))}B")
