"""What a recipe may leave out because other parts of it say so: names, sizes of the model, what its family has.

Only tables as they are written are filled; a recipe that a run has recorded holds every value already. What is filled
is returned, so that it can be shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fathom.families.defaults import model_defaults
from fathom.spec.field_docs import toml_value

Filled = list[tuple[str, str]]
"""Path and TOML value of each field that was left out."""
_NAMES = {"open": "base", "reward_model": "reward-model"}


def fill_defaults(raw: dict[str, Any]) -> Filled:
    """Fill what a recipe leaves out, in place; values of a wrong type stay for who checks them."""
    filled: Filled = []
    given = raw.get("steps")
    steps = [(i, step) for i, step in enumerate(given if isinstance(given, list) else []) if isinstance(step, dict)]
    _name_steps(steps, filled)
    for model, where, train in _models(raw, steps):
        named = {"name": raw["name"]} if isinstance(raw.get("name"), str) and "preset" not in model else {}
        _fill(model, named | _sizes(steps, train), where, filled)
        _fill(model, model_defaults(model), where, filled)
    return filled


def default_names(steps: list[Any]) -> list[str | None]:
    """Return the name that each step of a recipe has, by its kind where it has none: train, train-2, and so on."""
    taken = {str(step["name"]).casefold() for step in steps if isinstance(step, Mapping) and "name" in step}
    names: list[str | None] = []
    for step in steps:
        if isinstance(step, Mapping) and "name" in step:
            names.append(str(step["name"]))
            continue
        if not isinstance(step, Mapping) or not isinstance(step.get("kind"), str):
            names.append(None)
            continue
        first = _first_name(step)
        numbered = (first if number == 1 else f"{first}-{number}" for number in range(1, len(steps) + 2))
        names.append(next(name for name in numbered if name.casefold() not in taken))
        taken.add(str(names[-1]).casefold())
    return names


def _first_name(step: Mapping[str, Any]) -> str:
    kind = str(step["kind"])
    return _NAMES.get(kind, kind)


def _name_steps(steps: list[tuple[int, dict[str, Any]]], filled: Filled) -> None:
    for (index, step), name in zip(steps, default_names([step for _, step in steps]), strict=True):
        if name is not None and "name" not in step:
            step["name"] = name
            if name != _first_name(step):
                filled.append((f"steps[{index}].name", toml_value(name)))


def _models(
    raw: dict[str, Any], steps: list[tuple[int, dict[str, Any]]]
) -> Iterator[tuple[dict[str, Any], str, int | None]]:
    """Yield each model with its place and the first train step that builds it."""
    trained = [(index, step) for index, step in steps if step.get("kind") == "train"]
    if isinstance(raw.get("model"), dict):
        builds = (index for index, step in trained if "model" not in step and "start" not in step)
        yield raw["model"], "model", next(builds, None)
    for index, step in trained:
        if isinstance(step.get("model"), dict):
            yield step["model"], f"steps[{index}].model", index


def _sizes(steps: list[tuple[int, dict[str, Any]]], train: int | None) -> dict[str, Any]:
    """Return the vocabulary of the tokenizer that a train step uses, and the length of its sequences."""
    sizes: dict[str, Any] = {}
    for index, step in steps:
        if step.get("kind") == "tokenizer" and "vocab_size" in step and (train is None or index < train):
            sizes["vocab_size"] = step["vocab_size"]
        stage = step.get("train")
        if index == train and isinstance(stage, Mapping) and "sequence_length" in stage:
            sizes["max_position_embeddings"] = stage["sequence_length"]
    return sizes


def _fill(table: dict[str, Any], defaults: Mapping[str, Any], where: str, filled: Filled) -> None:
    """Set what a table leaves out; tables that both have are filled further, unless they are of different kinds."""
    for name, value in defaults.items():
        place = f"{where}.{name}"
        if name not in table:
            table[name] = value
            filled.append((place, toml_value(value)))
        elif isinstance(value, Mapping) and isinstance(table[name], dict) and name not in _WHOLE:
            _fill(table[name], value, place, filled)


_WHOLE = frozenset({"select", "balance"})
"""Tables that are taken whole where they are given."""
