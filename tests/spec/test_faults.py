"""Every fault of a recipe is named, whatever other faults there are."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import SpecError, SpecErrors
from fathom.spec.faults import from_mapping_or_faults
from fathom.spec.field_docs import field_docs, kind_of, specs_in
from fathom.spec.mapping import from_mapping, parse_toml, read_toml
from fathom.spec.model import ModelSpec
from fathom.spec.recipe import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def whole_recipe(name: str) -> dict[str, Any]:
    """Return a recipe with its problems in their places, as ``from_mapping`` reads it."""
    raw = read_toml(RECIPES / name)
    named = raw.pop("problems", {})
    for step in raw["steps"]:
        for table in (step, *step.get("data", [])):
            if isinstance(table, dict) and isinstance(table.get("problems"), list):
                table["problems"] = [{"name": each, **named[each]} for each in table["problems"]]
            elif isinstance(table, dict) and "problems" in table:
                table["problems"] = {"name": table["problems"], **named[table["problems"]]}
    return raw


WHOLE = {name: whole_recipe(name) for name in ("quickstart.toml", "r1.toml", "vl-tiny.toml")}


def tables(spec: type, table: dict[str, Any], path: str) -> list[tuple[str, type, dict[str, Any]]]:
    """Return every table of specs in a recipe, with its path and spec."""
    found = [(path, spec, table)]
    for name, value in table.items():
        doc = field_docs(spec).get(name)
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            if doc is None or not isinstance(item, dict) or not specs_in(doc.hint):
                continue
            inner = next((s for s in specs_in(doc.hint) if kind_of(s) == item.get("kind")), specs_in(doc.hint)[0])
            below = f"{path}.{name}" if path else name
            found += tables(inner, item, f"{below}[{index}]" if isinstance(value, list) else below)
    return found


def plant(rng: random.Random, spec: type, table: dict[str, Any], path: str, planted: set[str]) -> str | None:
    """Make one field of a table wrong by itself, and return where; None where it lies within another fault."""
    if any(_within(path, other) for other in planted):
        return None
    kind = rng.choice(["unknown", "missing", "type", "choice", "range"])
    docs = field_docs(spec)
    if kind == "unknown":
        table["no_such_field"] = 1
        return f"{path}.no_such_field"
    fitting = {
        "missing": [name for name, doc in docs.items() if doc.required and name in table],
        "type": [name for name, doc in docs.items() if name in table],
        "choice": [name for name, doc in docs.items() if doc.choices and not specs_in(doc.hint)],
        "range": [name for name in docs if name in _RANGES],
    }[kind]
    if not fitting:
        return None
    name = rng.choice(fitting)
    where = f"{path}.{name}"
    if any(_within(where, other) or _within(other, where) for other in planted):
        return None
    if kind == "missing":
        del table[name]
    else:
        table[name] = {"type": object, "choice": "no such choice", "range": -7}[kind]
    return where


def _within(path: str, other: str) -> bool:
    return path == other or path.startswith((f"{other}.", f"{other}["))


_RANGES = (
    *("hidden_size", "num_hidden_layers", "num_heads", "kv_lora_rank", "n_routed_experts", "moe_intermediate_size"),
    *("lr", "size", "sequence_length", "epochs", "max_grad_norm", "keep", "group_size", "questions", "max_tokens"),
    *("count", "samples", "repeat", "weight", "expert_loss", "theta", "sample_bytes", "held_out_fraction", "beta1"),
)


@settings(max_examples=50)
@given(st.sampled_from(sorted(WHOLE)), st.integers(1, 8), st.randoms(use_true_random=False))
def test_all_faults_that_are_planted_in_a_recipe_are_named(name: str, faults: int, rng: random.Random) -> None:
    raw = copy.deepcopy(WHOLE[name])
    places = tables(Recipe, raw, "")
    planted: set[str] = set()
    for _ in range(faults):
        path, spec, table = rng.choice(places[1:])
        field = plant(rng, spec, table, path, planted)
        if field is not None:
            planted.add(field)
    recipe, found = from_mapping_or_faults(Recipe, raw)
    assert (recipe is None) == bool(planted)
    named = {fault.path for fault in found}
    assert sorted(planted - named) == []
    assert len(found) >= len(planted)


def test_two_faults_in_one_table_are_both_named_and_no_contradiction_with_values_nobody_gave() -> None:
    table = {
        "kind": "group_limited",
        "n_group": "many",
        "topk_group": 99,  # more than the example of n_group, which is not the user's
        "group_score": "best",
    }
    model = {**WHOLE["quickstart.toml"]["model"]}
    model["moe"] = {**model["moe"], "router": {"select": table}}
    _, found = from_mapping_or_faults(ModelSpec, model)
    assert {fault.path for fault in found} == {
        "moe.router.select.n_group",
        "moe.router.select.group_score",
    }


def test_a_contradiction_is_found_beside_faults_of_other_tables() -> None:
    raw = copy.deepcopy(WHOLE["quickstart.toml"])
    raw["model"]["attention"]["num_heads"] = 0
    raw["steps"][3]["train"]["batch"] = {"size": 8, "initial_size": 9}
    raw["steps"][3]["train"]["optimiser"] = {}
    _, found = from_mapping_or_faults(Recipe, raw)
    assert {fault.path for fault in found} == {
        "model.attention.num_heads",
        "steps[3].train.batch.initial_size",
        "steps[3].train.optimiser",
    }


def test_the_examples_of_missing_fields_correct_a_table() -> None:
    _, found = from_mapping_or_faults(ModelSpec, {"family": "llama"})
    corrected: dict[str, Any] = {"family": "llama", "intermediate_size": 512}
    for fault in found:
        assert fault.problem == "is missing"
        corrected |= parse_toml(fault.example)
    assert from_mapping(ModelSpec, corrected)


@pytest.mark.parametrize("raw", [{}, {"steps": 3}, {"name": 1, "steps": [1, {}, {"kind": "sft", "data": "x"}]}])
def test_what_is_no_recipe_at_all_is_refused_with_every_fault(raw: dict[str, Any]) -> None:
    recipe, found = from_mapping_or_faults(Recipe, raw)
    assert recipe is None
    assert found
    assert all(fault.remedy for fault in found)


def test_errors_name_their_file_whether_they_are_of_a_field_of_the_whole_or_several() -> None:
    field, whole = SpecError("steps", "is missing", "set it"), SpecError("", "is no table", "write one")
    assert str(field.in_file("r.toml")) == "r.toml: steps: is missing; set it"
    assert str(whole.in_file("r.toml")) == "r.toml: is no table; write one"
    several = SpecErrors("", [field, whole]).in_file("r.toml")
    assert str(several).splitlines() == ["r.toml: 2 faults:", "  steps: is missing; set it", "  is no table; write one"]
    assert several.under("runs").faults == several.faults == (field, whole)
