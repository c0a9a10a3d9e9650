"""The JSON schema of recipes says what the parser says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from fathom.errors import SpecError
from fathom.pipeline.recipe import make_recipe
from fathom.spec.mapping import read_toml
from fathom.spec.recipe_schema import recipe_schema, schema_text

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.name for path in RECIPES.glob("*.toml"))
VALIDATOR = pytest.importorskip("jsonschema_rs").Draft202012Validator(recipe_schema())


def taken(raw: dict[str, Any]) -> tuple[bool, bool]:
    """Return whether the schema takes a recipe, and whether the parser does."""
    try:
        make_recipe(copy.deepcopy(raw), [])
    except SpecError:
        return VALIDATOR.is_valid(raw), False
    return VALIDATOR.is_valid(raw), True


def test_the_file_beside_the_recipes_is_the_schema() -> None:
    assert (RECIPES / "recipe.schema.json").read_text(encoding="utf-8") == schema_text()
    assert recipe_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_taken_and_names_the_schema(name: str) -> None:
    assert (RECIPES / name).read_text(encoding="utf-8").startswith("#:schema ./recipe.schema.json\n")
    assert taken(read_toml(RECIPES / name)) == (True, True)


def variants(raw: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """Return a recipe with one value changed, or removed where it is None."""
    changed = copy.deepcopy(raw)
    *parents, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    table: Any = changed
    for part in parents:
        table = table[part]
    if value is None:
        del table[last]
    else:
        table[last] = value
    return changed


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("name", None),
        ("steps", None),
        ("nmae", "x"),
        ("steps.0", 3),
        ("steps.0.kind", "corpse"),
        ("steps.0.kind", None),
        ("steps.1.vocab_size", None),
        ("steps.1.vocab_size", "many"),
        ("steps.1.vocab_size", 4096.5),
        ("steps.3.train.optimizer.lr", None),
        ("steps.3.train.optimizer.lr", True),
        ("steps.3.train.optimizer.learning_rate", 0.1),
        ("steps.3.train.schedule.kind", "linear"),
        ("steps.8.data.0.count", None),
        ("steps.8.data.0.problems", 3),
        ("steps.9.rewards.0.method", "guess"),
        ("steps.9.policy.rollout.prompt.thinking", "maybe"),
        ("model.family", "gpt2"),
        ("model.hidden_size", None),
        ("model.preset", 3),
        ("model.rope.layout", "diagonal"),
        ("model.attention.kind", "flash"),
        ("model.attention.heads", 4),
        ("model.attention.num_heads", None),
        ("model.moe.n_routed_experts", None),
        ("model.moe.router.select.kind", None),
        ("problems.leg_counting.dataset", None),
    ],
)
def test_what_the_parser_refuses_the_schema_refuses(place: str, value: Any) -> None:
    assert taken(variants(read_toml(RECIPES / "quickstart.toml"), place, value)) == (False, False)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("steps.0.name", "texts"),
        ("steps.3.name", None),
        ("steps.3.train.batch.micro_batch_size", None),
        ("steps.3.train.optimizer.lr", 1),
        ("model.vocab_size", None),
        ("model.max_position_embeddings", None),
        ("model.attention.kind", None),
        ("model.attention.kv_lora_rank", None),
        ("model.rope", None),
        ("model.moe.router", None),
        ("model", {"preset": "deepseek-v2-lite", "attention": {"num_heads": 8}}),
        ("steps.10.problems", [{"kind": "human_eval"}]),
    ],
)
def test_what_a_recipe_may_leave_out_the_schema_does_not_ask_for(place: str, value: Any) -> None:
    assert taken(variants(read_toml(RECIPES / "quickstart.toml"), place, value)) == (True, True)


def test_every_property_is_described() -> None:
    schema = recipe_schema()
    tables = [schema, *schema["$defs"].values()]
    assert len(tables) > 80
    for table in tables:
        for name, field in table["properties"].items():
            assert name == "kind" or field["description"], (table, name)
