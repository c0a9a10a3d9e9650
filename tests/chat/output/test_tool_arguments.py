"""Arguments against the schema of a tool's parameters, with a JSON Schema library as the oracle."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.chat.output import validate_arguments

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 2},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "unit": {"enum": ["C", "F"]},
        "at": {"type": "array", "items": {"type": "number"}, "minItems": 2, "uniqueItems": True},
    },
    "required": ["city"],
}


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        ('{"city": "Ulm", "days": 3, "unit": "C", "at": [1, 2.5]}', []),
        ('{"city": "Ulm", "days": 3.0}', []),
        ("{", ["arguments: not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"]),
        ("[1]", ["arguments: expected an object, got array"]),
        (
            '{"arguments": {"city": "Ulm"}}',
            [
                "arguments.city: is required and missing",
                "arguments.arguments: is not a parameter; there are city, days, unit, at",
            ],
        ),
        ('{"city": "U"}', ["arguments.city: has 1 characters, fewer than 2"]),
        ('{"city": "Ulm", "days": true}', ["arguments.days: expected integer, got boolean"]),
        ('{"city": "Ulm", "days": 9}', ["arguments.days: 9 is more than 7"]),
        ('{"city": "Ulm", "unit": "K"}', ['arguments.unit: "K" is not one of ["C", "F"]']),
        (
            '{"city": "Ulm", "at": [1, "2", 1]}',
            ["arguments.at[1]: expected number, got string", "arguments.at: items repeat"],
        ),
    ],
)
def test_each_problem_is_one_line(arguments: str, problems: list[str]) -> None:
    assert validate_arguments(arguments, WEATHER) == problems


def test_an_open_schema_takes_any_key() -> None:
    assert validate_arguments({"x": 1}, {}) == []
    assert validate_arguments({"x": 1}, {"properties": {"y": {}}, "additionalProperties": True}) == []
    nested = {"properties": {"y": {"type": "object", "properties": {"a": {}}}}}
    assert validate_arguments({"y": {"b": 1}}, nested) == []


values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, 1.0, -2.5]), st.text("ab", max_size=3)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)),
    max_leaves=5,
)
bounds = st.integers(-2, 3)
sizes = st.integers(0, 3)
kinds = st.sampled_from(["string", "number", "integer", "boolean", "null", "array", "object"])


def schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.one_of(kinds, st.lists(kinds, min_size=1, max_size=3, unique=True)),
            "enum": st.lists(values, min_size=1, max_size=3),
            "const": values,
            "minimum": bounds,
            "exclusiveMaximum": bounds,
            "multipleOf": st.sampled_from([0.5, 1, 2]),
            "minLength": sizes,
            "maxLength": sizes,
            "minItems": sizes,
            "maxProperties": sizes,
            "uniqueItems": st.booleans(),
            "required": st.lists(st.sampled_from("abc"), unique=True, max_size=2),
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            "additionalProperties": inner,
            "items": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "oneOf": st.lists(inner, min_size=1, max_size=2),
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "not": inner,
            "$ref": st.just("#/$defs/one"),
        },
    )


@given(
    schema=st.recursive(st.one_of(st.booleans(), schemas(st.booleans())), schemas, max_leaves=4),
    definition=schemas(st.booleans()).filter(lambda schema: "$ref" not in schema),
    value=values,
)
@settings(max_examples=200, deadline=None)
def test_the_keywords_mean_what_json_schema_says(schema: Any, definition: Any, value: Any) -> None:
    oracle = pytest.importorskip("jsonschema_rs")
    root = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {"one": definition},
        "properties": {"x": schema},
        "additionalProperties": True,
    }
    found = validate_arguments({"x": value}, root)
    assert (found == []) == oracle.Draft202012Validator(root).is_valid({"x": value}), found


def test_schemas_without_end_and_numbers_without_measure_are_survived() -> None:
    endless = {"anyOf": [{"$ref": "#"}, {"$ref": "#"}], "type": "string"}
    assert any("too deep or too involved" in line or "anyOf" in line for line in validate_arguments({}, endless))
    assert validate_arguments({"x": 1}, {"$ref": "#/nowhere"}) == [
        "arguments: the schema's $ref '#/nowhere' cannot be resolved"
    ]
    huge = json.loads("1" + "0" * 400)
    assert validate_arguments({"x": huge}, {"properties": {"x": {"type": "integer", "multipleOf": 10}}}) == []
    assert validate_arguments({"x": huge}, {"properties": {"x": {"multipleOf": 0.5, "maximum": 1e300}}}) != []
    odd: dict[str, Any] = {"type": 3, "enum": 1, "required": [[], 1], "properties": [], "minItems": "x", "items": 2}
    assert validate_arguments({"x": []}, odd) != []
    twofold = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(30)}  # 2**30 paths
    assert validate_arguments({}, {"$defs": twofold, "$ref": "#/$defs/a0"})[-1].endswith("too involved to check")
    assert validate_arguments({"x": "a" * 60 + "b"}, {"properties": {"x": {"pattern": "^(a+)+$"}}}) == []
    many = validate_arguments({str(i): 0 for i in range(50)}, {"properties": {}})
    assert len(many) == 20


@pytest.mark.parametrize("keyword", ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"])
@pytest.mark.parametrize("bound", [1, 1.5, 2])
def test_bounds_are_where_json_schema_puts_them(keyword: str, bound: float) -> None:
    oracle = pytest.importorskip("jsonschema_rs")
    schema = {"properties": {"x": {keyword: bound}}}
    for value in (0, 1, 1.5, 2, 3, -1, 4.5):
        assert (validate_arguments({"x": value}, schema) == []) == oracle.is_valid(schema, {"x": value}), value
