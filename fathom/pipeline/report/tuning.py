"""What fine-tuning left: curves of training and validation loss, and answers before and after."""

from __future__ import annotations

from pathlib import Path

from fathom.inference.run_record import as_written, read_json
from fathom.locale import marked
from fathom.pipeline.report.data import Curve, Replies, Reply
from fathom.pipeline.report.records import names, number, rows_of, text
from fathom.train.validation import VALIDATION_LOSS

METRICS = "metrics.jsonl"


def read_replies(path: Path) -> Replies | None:
    """Return what a replies step wrote; None where there is nothing."""
    if not path.exists():
        return None
    document = read_json(path)
    with as_written(path):
        found = []
        for reply in document["replies"]:
            asked = [turn for turn in reply["messages"] if turn["role"] == "user"]
            question = asked[-1]["content"] if asked else ""
            answers = {stage: text(answer) for stage, answer in names(reply["answers"]).items()}
            found.append(Reply(question=text(question), expected=text(reply["expected"]), answers=answers))
        return Replies(step=text(document["step"]), held_out=bool(document["held_out"]), replies=tuple(found))


def tuning_curves(directory: Path, step: str) -> list[Curve]:
    """Return the losses of a step over its optimizer steps: of what it learns, and of what it holds out."""
    path = directory / step / METRICS
    rows = rows_of(path, ("step", "tokens"), optional=("lm_loss",))
    losses = [(row["step"], row["lm_loss"]) for row in rows if row.get("lm_loss") is not None]
    with as_written(path):
        held_out = [
            (row["step"], number(row["evaluation"][VALIDATION_LOSS]))
            for row in rows
            if VALIDATION_LOSS in row.get("evaluation", {})
        ]
    points = {marked("training loss"): losses, marked("validation loss"): held_out}
    return [Curve(name=name, x=[x for x, _ in p], y=[y for _, y in p]) for name, p in points.items() if p]
