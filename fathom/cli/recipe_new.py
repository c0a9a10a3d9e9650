"""``fathom recipe new``: write a recipe for one's own data and machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from fathom.cli import options
from fathom.errors import SpecError
from fathom.locale import tr

Kind = Literal["pretrain", "finetune", "grpo", "distill", "dpo"]


def new(
    kind: Annotated[str, typer.Argument(help="pretrain, finetune, grpo, distill or dpo.")],
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="pretrain: a folder or file of text; may be repeated.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="finetune: conversations. dpo: pairs of answers. A file or folder.")
    ] = None,
    problems: Annotated[
        Path | None, typer.Option("--problems", help="grpo, distill: problems with answers; sums if left out.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model to begin with, as for other verbs.")] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", help="distill: the model to learn from.")] = None,
    family: Annotated[
        str, typer.Option("--family", help="pretrain: deepseek_v2, deepseek_v3, deepseek (MoE) or llama.")
    ] = "deepseek_v2",
    hours: Annotated[float, typer.Option("--hours", help="Time that the run may take on this machine.")] = 0.5,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; KIND.toml if left out.")] = None,
    device: options.Device = "auto",
) -> None:
    """Write a commented recipe sized to this machine, the data and the time it may take."""
    from fathom.files import write_text
    from fathom.model.device import resolve_device
    from fathom.pipeline.recipe_templates.kinds import KINDS
    from fathom.pipeline.recipe_templates.request import Request

    if kind not in KINDS:
        raise SpecError("KIND", f"there is no template {kind!r}", f"use one of {', '.join(KINDS)}")
    file = out if out is not None else Path(f"{kind}.toml")
    if file.exists():
        raise SpecError("--out", f"{file} exists already", "give another --out, or remove it")
    request = Request(
        out=file,
        hours=hours,
        device=resolve_device(device),
        cache_dir=options.cache_directory(),
        text=tuple(text or ()),
        data=data,
        problems=problems,
        model=model,
        teacher=teacher,
        family=family,
    )
    write_text(file, KINDS[kind](request))
    quoted = shlex.quote(str(file))
    print(tr("wrote {file}", file=file))
    train = f"fathom train {quoted} --out {shlex.quote(str(Path('runs') / request.name))}"
    print(tr("next:   {command}", command=f"fathom recipe check {quoted}"))
    print(tr("then:   {command}", command=train))
