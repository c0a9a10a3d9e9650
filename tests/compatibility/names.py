"""Names of models that lead nowhere."""

from __future__ import annotations

from pathlib import Path

from fathom.errors import CheckpointError
from fathom.inference.loading import open_source
from tests.compatibility.case import Case, Outcome


def _misspelt(folder: Path) -> Outcome:
    try:
        open_source("smolm2-135m", cache_dir=folder)
    except CheckpointError as error:
        return Outcome("refused", str(error).partition(";")[0])
    return Outcome("works")


CASES = (
    Case(
        what="a misspelt name of a catalog's model",
        zh="目录中模型的名称拼写错误",
        expected="refused",
        run=_misspelt,
    ),
)
