"""``fathom convert``: write a model in another form."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fathom.cli import model_options, options
from fathom.cli.display import make_display
from fathom.cli.load_progress import LoadProgress
from fathom.cli.terminal import FilteredConsole
from fathom.locale import tr
from fathom.progress import size


def convert(
    model: options.Model,
    destination: Annotated[Path, typer.Argument(help="What is written: a directory, or a .gguf file.")],
    to: Annotated[str, typer.Option("--to", help="hf, gguf or fathom; peft writes the model's adapter alone.")],
    adapter: model_options.Adapter = None,
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
    split_max_size: Annotated[
        str | None,
        typer.Option(
            "--split-max-size",
            help="Write NAME-00001-of-00009.gguf and so on, none larger than this, e.g. 4GiB (gguf); "
            "left out, one file of any size.",
        ),
    ] = None,
) -> None:
    """Write a model as a Hugging Face directory, GGUF files or a checkpoint of Fathom, in bounded memory.

    An adapter, of a run that trained one or of --adapter, is merged into the weights; --to peft writes it alone.
    """
    from fathom.inference.adapters import PEFT, export_adapter, with_adapter_of
    from fathom.inference.conversion import Conversion
    from fathom.inference.loading import open_source

    split_max_bytes = None if split_max_size is None else options.parse_bytes("--split-max-size", split_max_size)

    with LoadProgress(model) as progress:
        source = with_adapter_of(open_source(model, progress, cache_dir=options.cache_directory()), adapter)
    if to == PEFT:
        written, note = export_adapter(source, destination)
        print(tr("note: {text}", text=note), file=sys.stderr)
        _announce(written, PEFT)
        return
    planned = Conversion.prepare(
        source, destination, to, dtype=dtype, max_shard_bytes=max_shard_bytes, split_max_bytes=split_max_bytes
    )
    for note in planned.warnings:
        print(tr("note: {text}", text=note), file=sys.stderr)
    display = make_display(FilteredConsole(stderr=True))
    try:
        display.stage("convert", 1, 1)
        written = planned.run(display)
    finally:
        display.close()
    _announce(written, planned.format if planned.dtype is None else f"{planned.format}, {planned.dtype}")


def _announce(written: Path, form: str) -> None:
    from fathom.inference.inspection import list_files

    files = list_files(written)
    parts = tr(" in {count} files", count=len(files)) if written.is_file() and len(files) > 1 else ""
    total = size(sum(file["bytes"] for file in files))
    print(tr("{file}: format {format}, {size}", file=written, format=form, size=total) + parts)
