"""One module per kind of step, and the table that finds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

from fathom.pipeline.context import StepContext

Runner = Callable[[Any, StepContext], None]


def _lazy(module: str) -> Runner:
    def run(step: Any, context: StepContext) -> None:
        import_module(f"fathom.pipeline.steps.{module}").run(step, context)

    return run


KINDS = (
    "corpus",
    "tokenizer",
    "shards",
    "pictures",
    "train",
    "evaluate",
    "needle",
    "captions",
    "sample",
    "report",
    "open",
    "sft",
    "answers",
    "grpo",
    "dpo",
    "reward_model",
    "distill",
    "tasks",
    "replies",
)
_MODULES = MappingProxyType({"open": "open_model"})
RUNNERS: Mapping[str, Runner] = MappingProxyType({kind: _lazy(_MODULES.get(kind, kind)) for kind in KINDS})
"""Kind of step -> what runs it; a module's ``run(step, context)`` leaves its result at ``context.path(step)``."""
