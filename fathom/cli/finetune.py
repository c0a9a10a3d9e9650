"""``fathom finetune``: teach a model one's own chats, or pairs of answers, with one command."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fathom.cli import options
from fathom.cli.display import run_display
from fathom.cli.load_progress import LoadProgress
from fathom.cli.sections import padded
from fathom.errors import SpecError
from fathom.locale import tr
from fathom.progress import Progress, size

if TYPE_CHECKING:
    from fathom.pipeline.context import RunPlan
    from fathom.pipeline.finetune import Finetuning, TuningMemory

BARS = " .:-=+*#"
CURVE_POINTS = 40
STEP_TOKENS = 2048
"""Tokens of a step that memory is estimated for, or the model's context if that is shorter."""


Data = Annotated[
    Path,
    typer.Argument(help="Conversations, or pairs of answers: .jsonl, .json, .parquet, .csv, or a folder of them."),
]
Lora = Annotated[
    bool, typer.Option("--lora", help="Train a small adapter instead of all weights: less memory and disk.")
]
Epochs = Annotated[
    float | None, typer.Option("--epochs", help="How often each conversation is seen; by the data's size.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Run directory; runs/finetune-DATA if left out.")]
Rate = Annotated[float | None, typer.Option("--lr", help="Learning rate; by the model's size.")]
Batch = Annotated[int | None, typer.Option("--batch", help="Conversations of a step; by the data's size.")]
Rank = Annotated[int | None, typer.Option("--rank", help="Rank of the adapter (--lora); 16 if left out.")]
Quantize = Annotated[str | None, typer.Option("--quantize", help="int8 or int4: keep the adapted weights so (QLoRA).")]
MaxLength = Annotated[
    int | None, typer.Option("--max-length", help="Leave out longer conversations, in tokens; none by default.")
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field of the recipe, e.g. sft.train.patience=5.")
]


def finetune(
    context: typer.Context,
    model: options.Model,
    data: Data,
    lora: Lora = False,
    epochs: Epochs = None,
    out: Out = None,
    rate: Rate = None,
    batch: Batch = None,
    rank: Rank = None,
    quantize: Quantize = None,
    max_length: MaxLength = None,
    changes: Changes = None,
    format_name: options.Format = None,
    field: options.Field = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out; done anyway.")] = False,
    restart: options.Restart = False,
    track: options.Track = None,
    device: options.Device = "auto",
) -> None:
    """Teach a model your own chats, and show what it answered before and answers now.

    The same command continues a run that was interrupted.
    """
    from fathom.pipeline.finetune import Finetuning
    from fathom.pipeline.run import run
    from fathom.spec.step_results import STATE_FILE

    if resume and restart:
        raise SpecError("--restart", "contradicts --resume", "give one of them")
    wanted = Finetuning(
        epochs=epochs, rate=rate, batch=batch, max_length=max_length, lora=lora, rank=rank, quantize=quantize
    )
    plan, found = _plan(model, data, wanted, changes or [], format_name, field)
    directory = out if out is not None else Path("runs") / plan.recipe.name
    with run_display(options.command_line(context, restart=False, resume=True)) as display:
        display.message(found)
        run(
            plan,
            directory,
            cache_dir=options.cache_directory(),
            resume=(directory / STATE_FILE).exists() and not restart,
            restart=restart,
            device=device,
            progress=display,
            track=track or (),
        )
    _show(plan.recipe.steps[1].name, directory, display, adapted=lora)


def _plan(
    model: str,
    data: Path,
    wanted: Finetuning,
    changes: Sequence[str],
    format_name: str | None,
    field: Sequence[str] | None,
) -> tuple[RunPlan, str]:
    """Return the plan, and a line on the data and the memory that it takes, which is there."""
    from fathom.data.forms import Columns
    from fathom.inference.loading import open_source
    from fathom.pipeline.finetune import check_memory, finetuning_plan, read_tuning_data, tuning_memory

    adapter = wanted.adapter()
    rows = read_tuning_data(data, Columns(format_name, options.columns_of(field)))
    with LoadProgress(model) as progress:
        spec = open_source(model, progress, cache_dir=options.cache_directory()).spec
    plan = finetuning_plan(model, spec, rows, wanted, changes)
    memory = tuning_memory(spec, min(spec.max_position_embeddings, STEP_TOKENS), adapter)
    check_memory(memory, wanted)
    found = {"count": rows.rows, "unit": tr(rows.unit), "path": data, "memory": _memory_line(memory)}
    read_as = tr(", read as {format}", format=rows.columns.format) if rows.columns.format else ""
    return plan, tr("{count} {unit} in {path}{read_as}; {memory}", read_as=read_as, **found)


def _memory_line(memory: TuningMemory) -> str:
    sizes = {"full": size(memory.full), "limit": size(memory.limit)}
    if memory.adapter is None:
        return tr("full fine-tuning takes about {full} of {limit} of memory", **sizes)
    lora = size(memory.adapter)
    return tr("LoRA takes about {lora} of {limit} of memory, and full fine-tuning {full}", lora=lora, **sizes)


def _show(step: str, directory: Path, display: Progress, *, adapted: bool) -> None:
    """Print answers before and after, how the losses went, and what to do next."""
    from fathom.pipeline.report.tuning import read_replies, tuning_curves

    replies = read_replies(directory / "replies.json")
    if replies is not None:
        kind = tr("held-out") if replies.held_out else tr("learned")
        for reply in replies.replies:
            display.message("")
            display.message(f"{kind}: {reply.question}")
            for stage, answer in reply.answers.items():
                display.message(
                    f"  {padded(tr('after') if stage == step else tr('before'), 6)}: {' '.join(answer.split())}"
                )
    display.message("")
    for curve in tuning_curves(directory, step):
        if curve.y:
            points = curve.y[:: max(1, len(curve.y) // CURVE_POINTS)]
            display.message(f"{padded(tr(curve.name), 16)} {curve.y[0]:.3f} {_bars(points)} {curve.y[-1]:.3f}")
    display.message(tr("report: {file}", file=directory / "report.html"))
    for command in _next_commands(directory, adapted):
        display.message(tr("next:   {command}", command=command))


def _next_commands(directory: Path, adapted: bool) -> Iterator[str]:
    """Yield commands that use the model, and those that take its adapter alone elsewhere."""
    name = shlex.quote(str(directory))
    yield f"fathom chat {name}"
    yield f"fathom serve {name}"
    for form in ("hf", "peft") if adapted else ("hf",):
        yield f"fathom convert {name} {shlex.quote(f'{directory}-{form}')} --to {form}"


def _bars(values: Sequence[float]) -> str:
    """Draw values as bars one character wide."""
    low, high = min(values), max(values)
    blocks = "▁▂▃▄▅▆▇█" if (sys.stdout.encoding or "").lower().startswith("utf") else BARS
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(blocks[round((value - low) * scale)] for value in values)
