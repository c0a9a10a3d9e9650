"""What fine-tuning left: curves of training and validation loss, and answers before and after."""

from __future__ import annotations

from pathlib import Path

from fathom.inference.run_record import as_written, read_json
from fathom.locale import marked
from fathom.pipeline.report.data import Curve, Replies, Reply
from fathom.pipeline.report.records import HELD_OUT_LOSS, curve_of, names, rows_of, text, with_evaluation
from fathom.train.record import METRICS


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
    rows = with_evaluation(rows_of(directory / step / METRICS, ("step", "tokens"), optional=("lm_loss",)))
    fields = {"lm_loss": marked("training loss"), HELD_OUT_LOSS: marked("validation loss")}
    curves = [curve_of(name, rows, field, over="step") for field, name in fields.items()]
    return [curve for curve in curves if curve.x]
