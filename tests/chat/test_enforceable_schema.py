"""Schemas as pydantic and zod write them: accepted, and what is drawn under them validates."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import enum
import ipaddress
import random
import re
import uuid
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter

from fathom.chat import enforceable_schema
from fathom.chat.enforceable_schema import enforceable
from fathom.chat.grammar import GrammarCompiler, GrammarConstraint
from fathom.errors import DataError
from fathom.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer)


def drawn(constraint: GrammarConstraint, tokenizer: Tokenizer, seed: int, limit: int = 3000) -> str | None:
    """Draw from what is allowed, mostly what closes a value; None if it takes too long."""
    numbers, ids = random.Random(seed), []
    closing = {tokenizer.encode(mark, continues=True)[0] for mark in '"}],'}
    for _ in range(limit):
        if constraint.finished:
            return tokenizer.decode(ids, skip_special=False, continues=True)
        bitmask_W = torch.full(((tokenizer.vocab_size + 31) // 32,), -1, dtype=torch.int32)
        constraint.fill_bitmask(bitmask_W)
        choices = np.unpackbits(bitmask_W.numpy().view(np.uint8), bitorder="little").nonzero()[0].tolist()
        closers = [token for token in choices if token in closing or token == tokenizer.eos_id]
        token = numbers.choice(closers if closers and numbers.random() < 0.4 else choices)
        constraint.accept(token)
        ids += [token] if token != tokenizer.eos_id else []
    return None


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    """A cat."""

    kind: Literal["cat"]
    lives: int = Field(9, ge=1, le=9, description="How many are left.", examples=[3])


class Dog(BaseModel):
    kind: Literal["dog"]
    name: Annotated[str, Field(min_length=1, max_length=8)]


class Tree(BaseModel):
    value: int
    children: list[Tree] = Field(default_factory=list, max_length=2)


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]
LEAVES: list[Any] = [
    int, bool, None, str, float, Colour, Literal["a", "b"], Literal[1, 2], Cat, Pet, Tree, datetime.date,
    datetime.time, datetime.datetime, datetime.timedelta, uuid.UUID, pydantic.UUID4, ipaddress.IPv4Address,
    ipaddress.IPv4Network, pydantic.IPvAnyAddress, pydantic.SecretStr, pydantic.PositiveInt, bytes,
    Annotated[int, Field(ge=-3, lt=40)], Annotated[int, Field(multiple_of=5)], Annotated[float, Field(gt=0, le=1)],
    Annotated[str, Field(pattern="^[a-c]{1,3}$")], Annotated[str, Field(max_length=5)],
    dict[str, int], dict[Literal["x", "y"], int], dict[Colour, bool], dict[uuid.UUID, int], dict[datetime.date, int],
    dict[Annotated[str, Field(max_length=3)], int], dict[Annotated[str, Field(pattern="^k[0-9]$")], int],
    tuple[int, str], Annotated[list[int], Field(min_length=1, max_length=2)],
]  # fmt: skip
kinds = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        inner.map(lambda kind: kind | None if kind is not None else kind),
        inner.map(lambda kind: Annotated[list[kind], Field(max_length=2)]),
        st.tuples(inner, inner).map(lambda pair: tuple[pair]),
        inner.map(lambda kind: Annotated[dict[str, kind], Field(max_length=1)]),
    ),
    max_leaves=3,
)
fields = st.dictionaries(st.sampled_from(["a", "name", "größe", "x"]), st.tuples(kinds, st.booleans()), max_size=3)


@given(fields=fields, seed=st.integers(0, 999), forbid=st.booleans())
@settings(max_examples=120, deadline=None)
def test_what_is_drawn_under_the_schema_of_a_pydantic_model_validates(
    compiler: GrammarCompiler, tokenizer: Tokenizer, fields: dict[str, tuple[Any, bool]], seed: int, forbid: bool
) -> None:
    given_fields: dict[str, Any] = {
        name: (kind, ... if required else Field(None, description="a field"))
        for name, (kind, required) in fields.items()
    }
    config = pydantic.ConfigDict(extra="forbid" if forbid else "ignore")
    model = pydantic.create_model("Model", __config__=config, **given_fields)
    text = drawn(compiler.json_schema(model.model_json_schema()), tokenizer, seed)
    if text is not None:
        model.model_validate_json(text)


@pytest.mark.parametrize("kind", LEAVES, ids=str)
def test_every_kind_of_field_validates(compiler: GrammarCompiler, tokenizer: Tokenizer, kind: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    drawn_any = False
    for seed in range(6):
        text = drawn(compiler.json_schema(adapter.json_schema()), tokenizer, seed)
        if text is not None:
            adapter.validate_json(text)
            drawn_any = True
    assert drawn_any


DECIMALS = [
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$",
    r"^(?!^[-+.]*$)[+-]?0*(?:\d{0,3}|(?=[\d.]{1,6}0*$)\d{0,3}\.\d{0,2}0*)$",
]
ZOD_EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
ZOD_DURATION = r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$"


@pytest.mark.parametrize("pattern", [*DECIMALS, ZOD_EMAIL, ZOD_DURATION])
def test_patterns_that_look_around_are_narrowed_to_plain_ones(
    compiler: GrammarCompiler, tokenizer: Tokenizer, pattern: str
) -> None:
    texts = [drawn(compiler.json_schema({"type": "string", "pattern": pattern}), tokenizer, seed) for seed in range(20)]
    found = [text[1:-1] for text in texts if text is not None]
    assert len(found) > 10
    assert all(re.match(pattern, text) for text in found), found
    if pattern in DECIMALS:
        assert all(decimal.Decimal(text).is_finite() for text in found)


@pytest.mark.parametrize(
    "annotation",
    [
        {"discriminator": {"propertyName": "kind", "mapping": {}}},
        {"$schema": "https://json-schema.org/draft/2020-12/schema"},
        {"deprecated": True, "readOnly": True, "examples": [1], "default": {"a": 1}, "$comment": "c", "title": "t"},
        {"enumNames": ["a"], "errorMessage": {"type": "no"}, "x-order": 1, "propertyOrdering": ["a"], "ui:widget": "u"},
        {"format": "made-up"},
        {"contentMediaType": "image/png", "contentEncoding": "base64", "contentSchema": {"not": {}}},
        {"uniqueItems": False, "minContains": 1, "unevaluatedProperties": True},
    ],
)
def test_annotations_are_dropped(compiler: GrammarCompiler, annotation: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", **annotation}}, **annotation}
    reduced = enforceable(schema)
    assert reduced.keys() - {"$schema"} == {"type", "properties"}
    assert reduced["properties"]["a"].keys() - {"$schema"} == {"type"}
    compiler.json_schema(schema)


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        ({"not": {"type": "string"}}, "not: not cannot be enforced; list what is allowed by enum or anyOf"),
        ({"if": {}, "then": {}}, "cannot be enforced; write the cases as anyOf"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems: uniqueItems cannot be enforced; leave it out"),
        ({"contains": {"type": "integer"}}, "contains: contains cannot be enforced; describe every item"),
        ({"propertyNames": {"not": {"const": "a"}}}, "not: not cannot be enforced"),
        ({"type": "string", "pattern": "a(?=b)"}, "pattern: a pattern that looks around cannot be enforced; write it"),
        ({"maxLenght": 3}, "maxLenght: 'maxLenght' is not a keyword of JSON Schema; write maxLength"),
    ],
)
def test_what_constrains_and_cannot_be_enforced_is_refused_by_its_pointer(inner: dict[str, Any], words: str) -> None:
    schema = {"type": "object", "properties": {"a/b": {"anyOf": [{"type": "null"}, inner]}}}
    with pytest.raises(DataError) as error:
        enforceable(schema)
    assert str(error.value).startswith("json_schema#/properties/a~1b/anyOf/1/")
    assert words in str(error.value)
    assert enforceable(schema, lenient=True)["type"] == "object"


def test_a_nullable_schema_allows_null(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    schema = {"enum": [1, 2], "type": "integer", "nullable": True}
    texts = {drawn(compiler.json_schema(schema), tokenizer, seed) for seed in range(40)}
    assert texts == {"1", "2", "null"}


def test_refusing_takes_little_however_many_keywords_there_are() -> None:
    schema = {f"unheard{index}": {"type": "string"} for index in range(5000)}
    assert enforceable(schema) == {}


class Leaf(BaseModel):
    kind: Literal["leaf"]


class Branch(BaseModel):
    kind: Literal["branch"]
    children: Annotated[list[Annotated[Leaf | Branch, Field(discriminator="kind")]], Field(max_length=2)]


def test_alternatives_that_refer_to_themselves_are_told_apart(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    text = drawn(compiler.json_schema(Branch.model_json_schema()), tokenizer, 0)
    assert text is not None
    Branch.model_validate_json(text)


def test_a_definition_is_reduced_once_however_often_it_is_referred_to() -> None:
    definitions: dict[str, Any] = {"0": {"type": "string"}}
    for index in range(60):
        definitions[str(index + 1)] = {"properties": {"a": {"oneOf": [{"$ref": f"#/$defs/{index}"}] * 2}}}
    assert enforceable({"$ref": "#/$defs/60", "$defs": definitions})["$defs"].keys() == definitions.keys()


WORDS = [*sorted(enforceable_schema._KEYWORDS), "nullable", "requird", "discriminator", "a"]
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 3), st.floats(allow_nan=False), st.sampled_from([*WORDS, *DECIMALS]),
        st.sampled_from(["object", "string", "array", "integer", "#/$defs/a", "#", "date", "uuid", "^a$"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)),
    max_leaves=12,
)  # fmt: skip


@given(schema=st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=5), lenient=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_json_is_a_schema_or_a_fault_of_data(
    compiler: GrammarCompiler, schema: dict[str, Any], lenient: bool
) -> None:
    with contextlib.suppress(DataError):
        enforceable(schema, lenient=lenient)
    with contextlib.suppress(DataError):
        compiler.json_schema(schema)
