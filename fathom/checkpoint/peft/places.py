"""Where PEFT keeps the update of each parameter: modules of the published model, and stacked experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fathom.checkpoint.names import NameTable, Rule

PREFIX = "base_model.model."
STACKED_FAMILIES = ("deepseek_v2", "deepseek_v3", "mixtral")
"""Families whose experts transformers holds as two stacked parameters, which PEFT adapts by ``target_parameters``."""


@dataclass(frozen=True, slots=True)
class Place:
    """A published linear layer that is a part of a parameter, and where: its expert and its row of a fused pair."""

    rule: Rule
    index: tuple[int, ...]


def module_places(table: NameTable) -> dict[str, Place]:
    """Return the published linear layers by their paths; experts are one layer for each expert and matrix."""
    return {path: Place(rule, index) for rule in _matrices(table) for path, index in parts_of(rule)}


def parts_of(rule: Rule) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the paths of the published layers that a parameter is made of, and the index of each in it."""
    for expert, names in enumerate(rule.published):
        for row, name in enumerate(names):
            index = ((expert,) if rule.stacked else ()) + ((row,) if len(names) > 1 else ())
            yield name.removesuffix(".weight"), index


def stacked_places(table: NameTable) -> dict[str, dict[str, Rule]]:
    """Return the stacked parameters of each layer's experts, by the path that transformers gives the experts."""
    found: dict[str, dict[str, Rule]] = {}
    for rule in _matrices(table):
        if rule.stacked:
            path = experts_path(rule)
            found.setdefault(path, {})[rule.param_name.rpartition(".")[2]] = rule
    return found


def experts_path(rule: Rule) -> str:
    """Return the path that transformers gives the module of a layer's stacked experts."""
    path = rule.published[0][0].partition(".experts.")[0] + ".experts"
    return path.replace(".block_sparse_moe.", ".mlp.")


def _matrices(table: NameTable) -> Iterator[Rule]:
    for rule in table.rules:
        inner = rule.param_name.startswith("layers.") and len(rule.part_shape) == 2
        if inner and not rule.param_name.endswith(".gate.weight"):
            yield rule
