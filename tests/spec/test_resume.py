"""Every field of a training spec says what a difference in it means."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from fathom.spec.alignment import EpochsSpec
from fathom.spec.resume import FIELD_EFFECTS, Effect, differences, effect_of, flatten
from fathom.spec.rollout import OnlineSpec, PolicySpec
from fathom.spec.train import TrainSpec, UpdateSpec


def specs() -> set[str]:
    """Return the names of UpdateSpec and all specs made of it."""
    found: set[str] = set()
    waiting: list[type[UpdateSpec]] = [UpdateSpec]
    while waiting:
        spec = waiting.pop()
        found.add(spec.__name__)
        waiting += spec.__subclasses__()
    return found


def leaves(hint: Any, path: str) -> Iterator[str]:
    """Yield the dotted fields below a type, of every member of a union."""
    members = [member for member in (*typing.get_args(hint), hint) if dataclasses.is_dataclass(member)]
    if not members:
        yield path
    for member in members:
        hints = typing.get_type_hints(member)
        for field in dataclasses.fields(member):
            yield from leaves(hints[field.name], f"{path}.{field.name}" if path else field.name)


def named(effects: Any, field: str) -> bool:
    parts = field.split(".")
    return any(".".join(parts[:length]) in effects for length in range(1, len(parts) + 1))


def test_every_training_spec_is_in_the_table() -> None:
    assert specs() == {spec.__name__ for spec in FIELD_EFFECTS}
    assert specs() > {"TrainSpec", "EpochsSpec", "OnlineSpec", "PolicySpec", "DistillSpec"}


@pytest.mark.parametrize("spec", sorted(FIELD_EFFECTS, key=lambda spec: spec.__name__))
def test_every_field_has_an_effect_and_every_effect_a_field(spec: type[UpdateSpec]) -> None:
    fields = list(leaves(spec, ""))
    assert [field for field in fields if not named(FIELD_EFFECTS[spec], field)] == []
    stale = [entry for entry in FIELD_EFFECTS[spec] if not any(f"{field}.".startswith(f"{entry}.") for field in fields)]
    assert stale == []


@pytest.mark.parametrize(
    ("spec", "field", "effect"),
    [
        (TrainSpec, "batch.micro_batch_size", "rounding"),
        (TrainSpec, "optimizer.lr", "learning"),
        (TrainSpec, "schedule.milestones[1]", "learning"),
        (TrainSpec, "checkpoint.keep", "cadence"),
        (TrainSpec, "total_tokens", "growth"),
        (TrainSpec, "sequence_length", "fixed"),
        (EpochsSpec, "epochs", "growth"),
        (OnlineSpec, "epochs", "learning"),
        (PolicySpec, "rollout.max_tokens", "learning"),
        (PolicySpec, "rollout.prompt.text", "fixed"),
        (PolicySpec, "loss.kl.beta", "learning"),
        (PolicySpec, "loss.kl.estimator", "fixed"),
    ],
)
def test_the_longest_path_counts(spec: type[UpdateSpec], field: str, effect: Effect) -> None:
    assert effect_of(FIELD_EFFECTS[spec], field) == effect


def test_what_no_table_names_is_fixed() -> None:
    assert effect_of({"a.b": "rounding"}, "a") == "fixed"
    assert effect_of({"a.b": "rounding"}, "a.bc") == "fixed"


def test_differences_of_either_side_are_found() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "n": 4, "gone": "x"}
    new = {"a": {"b": 1, "c": [1, 3, 4]}, "n": 3, "here": True}
    found = {each.field: (each.old, each.new, each.effect) for each in differences({"n": "growth"}, old, new)}
    assert found == {
        "a.c[1]": (2, 3, "fixed"),
        "a.c[2]": (None, 4, "fixed"),
        "n": (4, 3, "learning"),
        "here": (None, True, "fixed"),
        "gone": ("x", None, "fixed"),
    }
    assert [each.effect for each in differences({"n": "growth"}, {"n": 3}, {"n": 4})] == ["growth"]
    assert [each.effect for each in differences({"n": "growth"}, {}, {"n": 4})] == ["learning"]


def test_flatten_names_every_leaf() -> None:
    assert dict(flatten({"a": [{"b": 1}, {"b": "xy"}], "c": ()})) == {"a[0].b": 1, "a[1].b": "xy"}
