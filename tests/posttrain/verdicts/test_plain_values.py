"""Plain values cross the boundary as they were, and nothing else is let through."""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import json
import random
from typing import Any

import pytest

from fathom.posttrain.verdicts.plain_values import MALFORMED, MAX_DEPTH, ValueDecoder, ValueEncoder
from fathom.posttrain.verdicts.shared import SharedContainers


def refuse(*_: Any) -> Any:
    raise ValueError("not plain")


def through(item: Any) -> Any:
    encoder = ValueEncoder(refuse, SharedContainers(0))
    value = encoder.value(item)
    value, table = json.loads(json.dumps([value, encoder.table()]))
    return ValueDecoder(refuse, table, SharedContainers(1)).value(value)


def draw_hashable(random_: random.Random, depth: int) -> Any:
    zone = datetime.timezone(datetime.timedelta(minutes=random_.randint(-700, 700)))
    leaves: list[Any] = [
        None,
        random_.random() < 0.5,
        random_.randint(-3, 3),
        random_.randint(-(10**40), 10**40),
        (1 << 63) - random_.randint(0, 2),
        random_.choice([0.0, -0.0, float("inf"), 1e-320, random_.uniform(-1e300, 1e300)]),
        complex(random_.random(), -0.0),
        "".join(chr(random_.randint(0, 0x10FFFF)) for _ in range(random_.randint(0, 4))),
        "".join(chr(random_.randint(0xD7F0, 0xE010)) for _ in range(3)),
        random_.randbytes(random_.randint(0, 4)),
        range(random_.randint(-3, 3), random_.randint(-3, 30), random_.randint(1, 3)),
        decimal.Decimal(random_.randint(-(10**9), 10**9)) / 7,
        fractions.Fraction(random_.randint(-(10**30), 9), 7),
        datetime.date(2000, 1, random_.randint(1, 31)),
        datetime.timedelta(days=random_.randint(-9, 9), microseconds=random_.randint(0, 9)),
        datetime.datetime(
            2000, 1, 1, 2, fold=1, microsecond=random_.randint(0, 9), tzinfo=random_.choice([None, zone])
        ),
        datetime.time(3, 4, tzinfo=random_.choice([None, zone])),
        Ellipsis,
    ]
    parts = [draw_hashable(random_, depth - 1) for _ in range(random_.randint(0, 3))] if depth else []
    return random_.choice([*leaves, tuple(parts), frozenset(parts), tuple(parts)])


def draw(random_: random.Random, depth: int) -> Any:
    if not depth or random_.random() < 0.2:
        return draw_hashable(random_, depth)
    parts = [draw(random_, depth - 1) for _ in range(random_.randint(0, 4))]
    keys = [draw_hashable(random_, 1) for _ in range(4)]
    pairs = list(zip(keys, parts, strict=False))
    return random_.choice(
        [
            parts,
            tuple(parts),
            dict(pairs),
            set(keys),
            bytearray(random_.randbytes(3)),
            collections.deque(parts, maxlen=random_.choice([None, 9])),
            collections.Counter(keys),
            collections.OrderedDict(pairs),
            slice(None, 3, -1),
        ]
    )


def assert_equal(left: Any, right: Any) -> None:
    """Equal in value, in type, in the sign of zeros and in the order of what has one, all the way down."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert_equal(list(left.items()), list(right.items()))
    elif isinstance(left, list | tuple | collections.deque):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_equal(one, other)
        assert getattr(left, "maxlen", None) == getattr(right, "maxlen", None)
    elif isinstance(left, float | complex):
        assert repr(left) == repr(right)
    elif isinstance(left, set | frozenset):
        assert left == right
        assert sorted(map(repr, left)) == sorted(map(repr, right)) or any(isinstance(x, frozenset) for x in left)
    else:
        assert left == right
        assert getattr(left, "tzinfo", None) == getattr(right, "tzinfo", None)
        assert getattr(left, "fold", 0) == getattr(right, "fold", 0)


@pytest.mark.parametrize("seed", range(300))
def test_random_values_come_out_as_they_went_in(seed: int) -> None:
    value = draw(random.Random(seed), 4)
    assert_equal(through(value), value)


def test_not_a_number_and_long_integers_cross() -> None:
    nan = through(float("nan"))
    assert nan != nan
    assert through(10**20_000) == 10**20_000
    assert through(-(1 << 63)) == -(1 << 63)


def test_a_default_dict_keeps_its_factory_where_that_can_cross() -> None:
    assert through(collections.defaultdict(None, {1: 2})) == {1: 2}
    with pytest.raises(ValueError, match="not plain"):
        through(collections.defaultdict(list))


def test_cycles_and_shared_containers_keep_their_shape() -> None:
    inner: list[Any] = [1]
    cycle: dict[str, Any] = {"a": inner, "b": (inner, [inner])}
    cycle["self"] = cycle
    inner.append(cycle)
    out = through(cycle)
    assert out["self"] is out
    assert out["a"] is out["b"][0] is out["b"][1][0]
    assert out["a"][1] is out


def test_lists_may_be_nested_deeply_and_tuples_within_a_bound() -> None:
    deep: list[Any] = []
    for _ in range(50_000):
        deep = [deep]
    out, depth = through(deep), 0
    while out:
        out, depth = out[0], depth + 1
    assert depth == 50_000
    nested: tuple[Any, ...] = ()
    for _ in range(MAX_DEPTH - 1):
        nested = (nested,)
    assert through(nested) == nested
    with pytest.raises(ValueError, match=f"more than {MAX_DEPTH} deep"):
        through((nested,))


@pytest.mark.parametrize("kind", [int, str, float, tuple, list, dict, set, bytes, bytearray, frozenset, complex])
def test_security_a_derived_class_never_crosses_as_the_plain_type(kind: type) -> None:
    always = type("Always", (kind,), {"__eq__": lambda self, other: True, "__hash__": lambda self: 0})
    with pytest.raises(ValueError, match="not plain"):
        through(always())
    with pytest.raises(ValueError, match="not plain"):
        through([{"a": (always(),)}])


def test_security_a_class_that_takes_a_standard_name_crosses_as_nothing() -> None:
    fake = type("Decimal", (), {"__module__": "decimal"})
    with pytest.raises(ValueError, match="not plain"):
        through(fake())


@pytest.mark.parametrize(
    "node",
    [
        ["F", "1e999999999"],
        ["F", "1e999999999", 1],
        ["F", 0.1],
        ["F", ["D", "1e999999999"]],
        ["F", True, 2],
        ["D", 5],
        ["D", [0, [1], 999999999]],
        ["a", "\x07\xd0\x01\x01"],
        ["w", 1e300, 0, 0],
        ["w", 10**400, 0, 0],
        ["w", float("nan")],
        ["M", "\x07\xd0\x01\x01\x00\x00\x00\x00\x00\x00", 0, None],
        ["M", 2000, 1, 1, 0, 0, 0, 10**30, 0, None],
        ["T", 1.0, 0, 0, 0, 0, None],
        ["T", 1, 0, 0, 0, 0, ["w", 9, 0, 0]],
    ],
)
def test_security_standard_types_are_made_of_numbers_that_they_write(node: list[Any]) -> None:
    with pytest.raises(MALFORMED):
        ValueDecoder(refuse, [], SharedContainers(1)).value(node)


@pytest.mark.parametrize("text", ["1e999999999", "-1E-999999999", "1e999999999999999999"])
def test_security_decimals_of_any_exponent_can_be_hashed_and_compared(text: str) -> None:
    read = through(decimal.Decimal(text))
    assert str(read) == str(decimal.Decimal(text))
    assert {read: 1}[decimal.Decimal(text)] == 1
    for other in (5, 0.5, 3**5000, fractions.Fraction(1, 3)):
        assert read != other
        assert (read > other) == (decimal.Decimal(text).adjusted() > 3000)


@pytest.mark.parametrize(
    "moment",
    [
        datetime.timedelta.max,
        datetime.timedelta.min,
        datetime.datetime.min.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=14))),
        datetime.datetime.max.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=-14))),
        datetime.date.max,
    ],
)
def test_security_the_ends_of_time_cross(moment: Any) -> None:
    assert through(moment) == moment
    assert hash(through(moment)) == hash(moment)


def test_security_damaged_messages_are_refused_in_one_way() -> None:
    random_ = random.Random(1)
    parts: list[Any] = [
        None,
        True,
        -1,
        0,
        1,
        10**30,
        1.5,
        "",
        "x",
        "zz",
        "ff",
        [],
        {},
        ["r", 1],
        ["r", -1],
        ["q"],
        ["l", ["r", 1]],
    ]
    tags = [*"irtfbcgl.?uDFwaMT", *"lmsyqCOd", "x", "", None, 3, [], {}]
    refused = 0
    for _ in range(20_000):
        node = [random_.choice(tags), *random_.choices(parts, k=random_.randint(0, 4))]
        table = [
            [
                random_.choice([*parts, 1]),
                random_.choice(tags),
                *random_.choices([*parts, node], k=random_.randint(0, 3)),
            ]
            for _ in range(2)
        ]
        try:
            ValueDecoder(refuse, random_.choice([table, [], node]), SharedContainers(0)).value(node)
        except MALFORMED:
            refused += 1
    assert 5_000 < refused < 20_000
