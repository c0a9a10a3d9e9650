"""``fathom recipe fields`` in a terminal: the fields that a path names, and near ones where it names none."""

from __future__ import annotations

import json

from tests.command_line import Call


def test_a_path_may_begin_at_the_recipe_or_at_the_kind_of_a_step(call: Call) -> None:
    for path in ("steps.sft.train.batch.size", "sft.train.batch.size", "steps[4].sft.train.batch.size"):
        outcome = call("recipe", "fields", path, "--json")
        assert (outcome.code, outcome.err) == (0, "")
        (place,) = json.loads(outcome.out)
        assert (place["path"], place["field"]["type"]) == ("steps.sft.train.batch.size", "whole number")


def test_near_fields_are_named_and_can_be_asked_for(call: Call) -> None:
    outcome = call("recipe", "fields", "model.atention.kv_lora_rnk")
    outcome.refused("no field of a recipe")
    near = outcome.err.partition("did you mean ")[2].rstrip("?\n").split(", ")
    assert "model.attention.mla.kv_lora_rank" in near
    assert all(call("recipe", "fields", path).code == 0 for path in near)


def test_the_end_of_a_path_stands_for_the_fields_that_end_so(call: Call) -> None:
    for path, name in (("optimizer.lr", "lr"), ("pretrain.train.total_tokens", "total_tokens")):
        (place,) = json.loads(call("recipe", "fields", path, "--json").out)
        assert place["field"]["name"] == name
    assert len(json.loads(call("recipe", "fields", "weight", "--json").out)) > 1
    call("recipe", "fields", "kind").refused("no field of a recipe")
