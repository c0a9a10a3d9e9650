"""Load a recipe: TOML, preset models, overrides from the command line, and the sources its corpus steps name."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fathom.data.folders.documents import folder_sources
from fathom.data.manifest import load_manifest
from fathom.errors import SpecError
from fathom.pipeline.context import RunPlan
from fathom.pipeline.recipe_defaults import Filled, default_names, fill_defaults
from fathom.pipeline.shipped_recipes import find_recipe
from fathom.pipeline.validation import order_faults
from fathom.spec.data import Manifest
from fathom.spec.faults import Faults, from_mapping_or_faults
from fathom.spec.mapping import parse_toml_value, read_toml, to_mapping
from fathom.spec.recipe import CorpusStep, Recipe

_SOME_PROBLEMS = {"kind": "human_eval"}
_SOME_PRESET = "deepseek-v2-lite"
"""What stands for a name that is not known, so that the faults of other fields are found too."""


def load_run_plan(
    path: Path, *, overrides: Sequence[str] = (), text: Sequence[Path] = (), text_column: str | None = None
) -> RunPlan:
    """Read a recipe TOML, or the one of that name that comes with Fathom, into a ``RunPlan``.

    ``[model]`` is a ModelSpec, or ``preset = "name"`` of ``fathom.families`` plus the fields that differ.
    ``[problems.NAME]`` tables are sources of problems that steps take by ``problems = ["NAME", ...]``.
    ``overrides`` are ``path=value`` strings, e.g. ``model.hidden_size=128`` or ``pretrain.train.total_tokens=1000``,
    where a step is named, or numbered as ``steps[2]``; values are TOML, or plain text where they are not.
    ``text`` folders replace the sources of every corpus step; ``text_column`` names the column of their data files
    that holds the text.

    Raises:
        SpecError: a field is unknown, missing, mistyped or contradicts another; located by file and field.
    """
    path = find_recipe(path)
    raw, filled = read_toml(path), Filled()
    try:
        recipe = make_recipe(raw, overrides, filled)
    except SpecError as error:
        raise error.in_file(path.name) from None
    manifests = text_manifests(recipe, text, text_column)
    if manifests is None:
        corpora = [step for step in recipe.steps if isinstance(step, CorpusStep)]
        manifests = {step.name: _sources(step, path.parent) for step in corpora}
    return RunPlan(recipe=recipe, manifests=manifests, base=path.parent, defaults=tuple(filled))


def _sources(step: CorpusStep, base: Path) -> Manifest:
    """Return what a corpus step reads, its paths taken from the recipe's folder."""
    where = f"steps.{step.name}"
    if step.manifest is not None:
        return load_manifest((base / step.manifest).resolve())
    if not step.text:
        raise SpecError(f"{where}.text", "is missing", 'set text = ["FOLDER"] or manifest, or give --text FOLDER')
    return Manifest(
        sources=folder_sources([base / Path(each).expanduser() for each in step.text], where=f"{where}.text")
    )


def make_recipe(raw: dict[str, Any], overrides: Sequence[str], filled: Filled | None = None) -> Recipe:
    """Make a recipe from its values with ``overrides`` laid over them, which changes ``raw``.

    What it leaves out is added to ``filled``.

    Raises:
        SpecError: located by field; ``SpecErrors`` where several are wrong.
    """
    faults = Faults()
    for override in overrides:
        with faults.collect():
            _apply_override(raw, override)
    for owner, where in _models(raw):
        with faults.collect():
            owner["model"] = _resolve_model(owner["model"], where, faults)
    named = _resolve_problems(raw, faults)
    defaults = fill_defaults(raw)
    if filled is not None:
        filled += defaults
    recipe, wrong = from_mapping_or_faults(Recipe, raw)
    faults.found += [_by_name(fault, named) for fault in wrong]
    if recipe is not None:
        faults.found += order_faults(recipe)
    faults.raise_if_any()
    assert recipe is not None
    return recipe


def text_manifests(recipe: Recipe, text: Sequence[Path], text_column: str | None) -> dict[str, Manifest] | None:
    """Return the sources of every corpus step where ``text`` replaces them, None where it does not."""
    if text_column is not None and not text:
        raise SpecError("--text-column", "is about the data files of --text", "give --text FOLDER, or leave it out")
    if not text:
        return None
    sources = Manifest(sources=folder_sources(text, text_column))
    return {step.name: sources for step in recipe.steps if isinstance(step, CorpusStep)}


def _models(raw: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """Yield each table that holds a model, and where that model is."""
    if "model" in raw:
        yield raw, "model"
    steps = raw.get("steps")
    for index, step in enumerate(steps if isinstance(steps, list) else []):
        if isinstance(step, dict) and "model" in step and step.get("kind") == "train":
            yield step, f"steps[{index}].model"


def _resolve_problems(raw: dict[str, Any], faults: Faults) -> dict[str, str]:
    """Put the sources of problems that a recipe names once in the places of their names.

    Return the place in ``[problems]`` of each source, by where it was put.
    """
    named, places = raw.pop("problems", {}), {}
    if not isinstance(named, Mapping):
        faults.found.append(SpecError("problems", f"expected tables, got {named!r}", "write them as [problems.NAME]"))
        named = {}

    def source(value: Any, where: str) -> Any:
        if not isinstance(value, str):
            return value
        if not isinstance(named.get(value), Mapping):
            known = ", ".join(named) or "none: add [problems.NAME] tables"
            faults.found.append(SpecError(where, f"there are no problems {value!r}", f"use one of {known}"))
            return _SOME_PROBLEMS
        places[where] = f"problems.{value}"
        return {"name": value, **named[value]}

    steps = raw.get("steps")
    for index, step in enumerate(steps if isinstance(steps, list) else []):
        where = f"steps[{index}]"
        given = step.get("problems") if isinstance(step, dict) else None
        if isinstance(given, list):
            step["problems"] = [source(value, f"{where}.problems[{place}]") for place, value in enumerate(given)]
        data = step.get("data") if isinstance(step, dict) else None
        for place, entry in enumerate(data if isinstance(data, list) else []):
            if isinstance(entry, dict) and "problems" in entry:
                entry["problems"] = source(entry["problems"], f"{where}.data[{place}].problems")
    return places


def _by_name(fault: SpecError, places: Mapping[str, str]) -> SpecError:
    """Return a fault within a source of problems located where the recipe has it."""
    for where, place in places.items():
        if fault.path.startswith(f"{where}."):
            return fault.at(place + fault.path.removeprefix(where))
    return fault


def _resolve_model(raw: Any, where: str, faults: Faults) -> Any:
    if not isinstance(raw, Mapping) or "preset" not in raw:
        return raw
    from fathom.families import preset

    differing = {name: value for name, value in raw.items() if name != "preset"}
    try:
        base = preset(str(raw["preset"]))
    except SpecError as error:
        faults.found.append(SpecError(f"{where}.preset", error.problem, error.remedy))
        base = preset(_SOME_PRESET)
    return merge(to_mapping(base), differing)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested mapping over another; a table of another ``kind`` replaces the old one whole."""
    result = dict(base)
    for name, value in over.items():
        old = result.get(name)
        same_kind = isinstance(old, Mapping) and isinstance(value, Mapping)
        same_kind = same_kind and value.get("kind", old.get("kind")) == old.get("kind")  # type: ignore[union-attr]
        result[name] = merge(old, value) if same_kind else value  # type: ignore[arg-type]
    return result


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = [part for part in re.split(r"[.\[\]]+", key.strip()) if part]
    if not equals or not parts:
        raise SpecError(f"--set {override}", "is not path=value", "write e.g. --set pretrain.train.total_tokens=100000")
    steps = raw["steps"] if isinstance(raw.get("steps"), list) else []
    names = [step.get("name", step.get("kind")) if isinstance(step, Mapping) else None for step in steps]
    names = [
        by_default if parts[0] == by_default else name
        for name, by_default in zip(names, default_names(steps), strict=True)
    ]
    if parts[0] in names and parts[0] not in raw:
        parts = ["steps", *parts]
    target: Any = raw
    for index, part in enumerate(parts[:-1]):
        target = _descend(target, part, names if parts[:index] == ["steps"] else [], override)
    if not isinstance(target, dict):
        raise SpecError(f"--set {override}", f"{parts[-1]!r} is not inside a table", "name a field of the recipe")
    target[parts[-1]] = _toml_value(text.strip())


def _descend(target: Any, part: str, names: Sequence[Any], override: str) -> Any:
    if isinstance(target, list):
        if part in names:
            return target[names.index(part)]
        if part.isdigit() and int(part) < len(target):
            return target[int(part)]
        known = ", ".join(str(name) for name in names) or f"0 to {len(target) - 1}"
        raise SpecError(f"--set {override}", f"there is no entry {part!r}", f"use one of {known}")
    if not isinstance(target, dict):
        raise SpecError(f"--set {override}", f"{part!r} is not inside a table", "name a field of the recipe")
    return target.setdefault(part, {})


def _toml_value(text: str) -> Any:
    try:
        return parse_toml_value(text)
    except tomllib.TOMLDecodeError:
        return text
