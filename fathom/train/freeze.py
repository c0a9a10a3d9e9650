"""Freezing parts of a model: which parameters a stage trains."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fathom.errors import SpecError


def freeze(model: nn.Module, frozen: Sequence[str]) -> None:
    """Freeze parameters whose name is, or lies below, one of ``frozen`` (``layers``, ``vision.low``); train all others.

    Raises:
        SpecError: a name that no parameter has, or nothing is left to learn.
    """
    names = [name for name, _ in model.named_parameters()]
    for index, part in enumerate(frozen):
        if not any(_below(name, part) for name in names):
            known = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise SpecError(f"frozen[{index}]", f"the model has no {part!r}", f"use parts of {known}, e.g. layers.0")
    learning = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(_below(name, part) for part in frozen))
        learning += parameter.requires_grad
    if not learning:
        raise SpecError("frozen", f"{', '.join(frozen)} is the whole model", "leave something to learn")


def _below(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")
