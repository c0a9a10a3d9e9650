"""What the program may have the tests' process do, and what the tests may learn of an object's operations."""

from __future__ import annotations

import pytest

from fathom.posttrain.verdicts import names
from tests.posttrain.verdicts.conftest import Judge
from tests.posttrain.verdicts.forgeries import ANY_METHODS, CHANGING, OPERATIONS, REACHING


@pytest.mark.parametrize("name", REACHING)
def test_a_request_for_what_would_reach_the_tests_is_refused(name: str, apart: Judge) -> None:
    ended = apart(REACHING[name], "f(1)")
    assert isinstance(ended, PermissionError | AttributeError | KeyError), ended


@pytest.mark.parametrize("name", sorted({*dir(type), *dir(object), *dir(print), *dir(pytest)}))
def test_no_special_method_but_those_that_cross_is_called(name: str, apart: Judge) -> None:
    if name in names.SPECIAL:
        return
    program = REACHING["special_of_a_class"].replace("'mro'", repr(name))
    assert isinstance(apart(program, "f(1)"), PermissionError)


@pytest.mark.parametrize("made", ["Own()", "Held()", "0", "0.0", "self"])
@pytest.mark.parametrize("base", ["object", "float", "set", "ValueError"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_what_an_operation_with_a_plain_value_gives_is_no_number(name: str, base: str, made: str, apart: Judge) -> None:
    tests, right = OPERATIONS[name]
    assert apart(f"def f(x): return {right}", tests) is None
    assert apart(ANY_METHODS.format(base=base, made=made), tests) is not None


@pytest.mark.parametrize("kind", ["Own", "I"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_plain_value_is_asked_for_once(name: str, kind: str, apart: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "plain_copy", names.plain_copy)  # which the program replaces
    assert apart(CHANGING.format(kind=kind), OPERATIONS[name][0]) is not None


def test_an_iteration_ends_where_its_iterator_says_so_only(apart: Judge) -> None:
    stops = "def f(x): raise StopIteration"
    assert isinstance(apart(stops, "assert list(map(f, [1, 2])) == []"), RuntimeError)
    assert apart(stops, "try: f(1)\nexcept StopIteration: pass") is None
    assert apart("def f(x): yield x", "assert list(f(1)) == [1]\nassert next(iter(f(2))) == 2") is None


def test_a_program_formats_no_text_of_the_tests_own_class(apart: Judge) -> None:
    tests = "secret = 'sesame'\nclass S(str): pass\nassert 'sesame' not in f(S('x'), lambda: 1)"
    program = "def f(text, lent): return type(text)('{0.__globals__}').format(lent)"
    assert isinstance(apart(program, tests), AttributeError)


def test_all_of_the_program_leaves_the_tests_and_python_their_names(apart: Judge) -> None:
    program = "def f(x): return 1\ndef len(x): return 9\ndef helper(): return 2\nclass math: pi = 3"
    tests = """
import math
def helper(): return 5
from answer import *
assert (f(1), helper(), len([])) == (1, 5, 0) and math.pi > 3
"""
    assert apart(program, tests) is None


def test_objects_of_honest_programs_keep_their_operations(apart: Judge) -> None:
    program = """
class Bag:
    def __init__(self, items=()): self.items = list(items)
    def __iadd__(self, more): self.items += more; return self
    def __len__(self): return len(self.items)
    def __mul__(self, n): return Bag(self.items * n)
    def __eq__(self, other): return self.items == other.items
class Counted(int): pass
"""
    tests = """
bag = Bag()
bag += [1, 2]
assert len(bag) == 2 and bag and not Bag()
assert bag * 2 == Bag([1, 2, 1, 2]) and (bag * 2).items == [1, 2, 1, 2]
n = Counted(3)
n -= 1
assert n == 2 and Counted(3) < 4 and {Counted(3): 1}[3] == 1
"""
    assert apart(program, tests) is None


def test_errors_of_the_standard_library_are_caught_as_what_they_are(apart: Judge) -> None:
    program = """
import dataclasses, decimal, json, re, statistics
@dataclasses.dataclass(frozen=True)
class P:
    x: int = 1
def f(x):
    if x == 0: P().x = 2
    if x == 1: json.loads('{')
    if x == 2: re.compile('(')
    if x == 3: statistics.mean([])
    if x == 4: decimal.Decimal('x')
"""
    tests = """
import dataclasses, decimal, json, re, statistics
kinds = [dataclasses.FrozenInstanceError, json.JSONDecodeError, re.error, statistics.StatisticsError]
for x, kind in enumerate([*kinds, decimal.InvalidOperation]):
    try: f(x)
    except kind: continue
    raise AssertionError(kind)
"""
    assert apart(program, tests) is None


@pytest.mark.parametrize("kind", ["queue.Empty", "asyncio.CancelledError", "unittest.SkipTest"])
def test_errors_that_end_loops_tasks_or_tests_are_none_of_the_tests(kind: str, apart: Judge) -> None:
    module = kind.partition(".")[0]
    tests = f"import {module}\ntry: f(1)\nexcept {kind}: pass"
    assert str(apart(f"import {module}\ndef f(x): raise {kind}('from the program')", tests)) == "from the program"


def test_streams_and_generators_of_numbers_may_be_lent_but_not_changed(apart: Judge) -> None:
    program = "def f(stream): return stream.read().upper()\ndef g(random): return random.randint(1, 6)"
    tests = (
        "import io, random\nassert f(io.StringIO('a')) == 'A' and g(random.Random(1)) == random.Random(1).randint(1, 6)"
    )
    assert apart(program, tests) is None
    for use in ("stream.getvalue = print", "stream.__class__.read", "type(stream).read", "stream.read.__self__"):
        assert isinstance(apart(f"def f(stream): {use}", "import io\nf(io.StringIO('a'))"), AttributeError), use


SUPPRESSING = """
class Own:
    def __enter__(self): return self
    def __exit__(self, *error): return True
    async def __aenter__(self): return self
    async def __aexit__(self, *error): return True
def f(x): return Own()
def call(check, *values):
    try: return check(*values)
    except BaseException: return None
"""


@pytest.mark.parametrize(
    "tests",
    [
        "with f(1): assert 1 == 2",
        "with f(1) as x: assert x == 2",
        "with f(1) as x: assert x < 2",
        "with f(1) as x: x.y.z",
        "from contextlib import ExitStack as E\nwith E() as stack:\n    stack.enter_context(f(1))\n    assert 1 == 2",
        "import asyncio\nasync def main():\n    async with f(1): assert 1 == 2\nasyncio.run(main())",
        "def check(x): assert x == 2\ncall(check, 1)",
        "@lambda check: lambda *x: call(check, *x)\ndef check(x): assert x == 2\ncheck(1)",
        "with f(1): raise AssertionError",
    ],
)
def test_a_failed_check_cannot_be_suppressed_by_the_program(tests: str, apart: Judge, directly: Judge) -> None:
    assert directly(SUPPRESSING, tests) is None
    assert apart(SUPPRESSING, tests) is not None


@pytest.mark.parametrize(
    "tests",
    [
        "with f(1): raise ValueError",
        "with f(1) as x: pass",
        "def check(x): raise KeyError\nassert call(check, 1) is None",
        "import asyncio\nasync def main():\n    async with f(1): raise ValueError\nasyncio.run(main())",
    ],
)
def test_errors_that_the_tests_name_may_be_suppressed(tests: str, apart: Judge) -> None:
    assert apart(SUPPRESSING, tests) is None


def test_a_program_uses_contexts_of_the_tests_as_they_are(apart: Judge) -> None:
    program = "def f(context):\n    with context: {}['x']\n    return 5"
    assert apart(program, "import contextlib\nassert f(contextlib.suppress(LookupError)) == 5") is None
