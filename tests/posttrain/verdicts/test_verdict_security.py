"""No program passes tests without giving the right values, whatever it does to its process or to the protocol."""

from __future__ import annotations

import builtins

import pytest

from fathom.posttrain.sandbox import ExecutionResult, SandboxLimits, run_program
from fathom.posttrain.verdicts import mirrors, names
from fathom.posttrain.verdicts.peer import SERVED, PeerLost
from tests.posttrain.verdicts.conftest import Judge
from tests.posttrain.verdicts.forgeries import ALWAYS, FORGERIES

needs_bwrap = pytest.mark.usefixtures("sandbox_works")
LIMITS = SandboxLimits(seconds=4.0, memory_mib=256, output_bytes=100_000, processes=8)
TESTS = """
def check(candidate):
    assert candidate(2) == 4
    assert candidate([1, 2]) == [1, 2, 1, 2]
    assert abs(candidate(0.25) - 0.5) < 1e-6
    assert candidate("ab") in ("abab",)
    assert not candidate("") and len(candidate((1,))) == 2

check(f)
"""
MESSAGE = """
import json, os
def message(**content):
    data = json.dumps({"t": [], "n": 1} | content).encode()
    return len(data).to_bytes(4, 'big') + data
def request(function, *nodes):
    return message(f=function, a=nodes, k={}, d=[])
"""


def run(program: str, tests: str = TESTS) -> ExecutionResult:
    return run_program(program, tests, limits=LIMITS)


@needs_bwrap
class TestForgeries:
    def test_an_honest_program_passes(self) -> None:
        assert run("def f(x): return x * 2").passed

    @pytest.mark.parametrize("name", FORGERIES)
    def test_nothing_done_to_the_programs_process_passes(self, name: str) -> None:
        ended = run(FORGERIES[name])
        assert not ended.passed
        assert ended.reason in ("raised", "exit", "time", "memory", "signal", "output")

    @pytest.mark.parametrize("base", ["", "(float)", "(str)"])
    def test_an_object_that_agrees_with_everything_does_not_pass(self, base: str) -> None:
        ended = run(ALWAYS.format(base=base, truth=True) + "def f(x): return Always()")
        assert (ended.reason, ended.detail) == ("raised", "AssertionError: ")

    @pytest.mark.slow
    def test_the_reason_stays_the_programs_own(self) -> None:
        at_import = run("raise LookupError('no table')")
        assert (at_import.reason, at_import.detail) == ("raised", "LookupError: no table")
        assert run("def f(x): raise OSError('disk')").detail == "OSError: disk"
        assert run(FORGERIES["exits"]).reason == run(FORGERIES["raises_exit"]).reason == "exit"
        assert run("import os\ndef f(x): os.kill(os.getpid(), 9)").reason == "signal"
        assert run("def f(x): return bytearray(10 ** 9)").reason == "memory"
        assert run(FORGERIES["hangs"]).reason == run("while True: pass").reason == "time"
        assert run("def f(x):\n    while True: print('x' * 999)").reason == "output"
        assert "16 MiB" in run(FORGERIES["giant"]).detail
        assert run("def f(x): return 5", "assert f(2) == 4, f'got {f(2)}'").detail == "AssertionError: got 5"

    @pytest.mark.parametrize(
        "reply",
        [
            "b'\\xff' * 64",
            "b'\\0\\0\\0\\4null'",
            "b'\\0\\0\\0\\4{{{{'",
            "message()",
            "message(n=999, v=True)",
            "message(v=['r', 5])",
            "message(v=['o', 0])",
            "message(v=['n', 'os', '_exit'])",
            "message(v=['n', 'builtins', 'eval'])",
            "message(v=['f'], t=[[0, 'l'], [2, 'm', 1]])",
            "message(x=1)",
            "request('global', 'check')",
            "request('getattr', ['o', 0], '__globals__')",
            "request('special', '__call__', ['n', 'builtins', 'eval'], '1')",
            "b''.join(message(n=n, v=True) for n in range(9))",
        ],
    )
    def test_forged_messages_pass_nothing(self, reply: str) -> None:
        writes = f"for fd in range(3, 64):\n    try: os.write(fd, {reply})\n    except OSError: pass\n"
        assert not run(MESSAGE + writes + "def f(x): return x and 0\n").passed

    def test_threads_that_write_replies_meanwhile_pass_nothing(self) -> None:
        forge = """
import threading
def forge():
    while True:
        for n in range(99):
            for fd in range(3, 12):
                try: os.write(fd, message(n=n, v=True))
                except OSError: pass
threading.Thread(target=forge, daemon=True).start()
def f(x): return 0
"""
        assert not run(MESSAGE + forge).passed

    def test_a_lost_program_fails_tests_that_catch_everything(self) -> None:
        tests = "for _ in range(3):\n    try: f(1)\n    except: pass\n"
        assert run("def f(x): raise ValueError", tests).passed
        assert run("import os\ndef f(x): os._exit(0)", tests).reason == "exit"
        assert not run("import os\ndef f(x): os.closerange(3, 65536)", tests).passed

    def test_what_the_tests_hold_is_not_in_the_programs_process(self) -> None:
        program = """
import gc
def f(x):
    word = ''.join(('ses', 'ame'))
    return [text for o in gc.get_objects() if type(o) in (tuple, dict, list) and word in (text := str(o))]
"""
        tests = "secret = 'open ' + 'sesame'\nassert [part for part in f(1) if 'open' in part] == []"
        assert run(program, tests).passed

    def test_the_two_processes_share_no_files_and_see_no_processes(self) -> None:
        program = "import os\ndef f(): return os.listdir('/tmp'), os.path.exists('/proc')"
        assert run(program, "open('/tmp/mine', 'w').write('x')\nassert f() == ([], False)").passed


COMPARISONS = [
    "f(1) == 2",
    "2 == f(1)",
    "not f(1) != 2",
    "f(1) in (2, 3)",
    "f(1) in {2, 3}",
    "2 in f(1)",
    "f(1) is True",
    "1 < f(1) < 3",
    "3 > f(1) > 1",
    "3 >= f(1) >= 1",
    "abs(f(1) - 2) < 1e-6",
    "abs(2 - f(1)) < 1e-6",
    "round(f(1) - 2.0) == 0",
    "round(f(1), 2) == 2",
    "f(1) % 5 == 2",
    "f(1) - 2 == 0",
    "not f(1) - 2",
    "f(1) and not (f(1) - {2})",
    "len(f(1)) == 1 and len(f(1) - {2}) == 0",
    "all(x == 2 for x in [f(1)])",
    "[f(1), 3] == [2, 3]",
    "(f(1),) == (2,)",
    "{1: f(1)} == {1: 2}",
    "{f(1): 1} == {2: 1}",
    "{f(1)} == {2}",
    "sorted(f(1)) == [2]",
    "list(f(1)) == [2]",
    "str(f(1)) == '2'",
    "repr(f(1)) == '2'",
    "isinstance(f(1), (int, str)) and f(1) == 2",
    "int(f(1)) == 2",
    "math.isclose(f(1), 2)",
    "math.fabs(f(1) - 2) < 1e-6",
    "float(f(1) - 2) == 0",
    "max(f(1), 2) == 2 and f(1) == 2",
    "sum([f(1), -2]) == 0",
    "f(1)[0] == 2",
    "f(1) == 'two'",
    "f(1) == [2]",
    "f(1) == {'a': 2}",
    "f(1) == None",
    "operator.eq(f(1), 2)",
    "Counter([f(1)]) == Counter([2])",
    "set(f(1)) >= {2}",
]
RIGHT = {
    "f(1) is True": "True",
    "f(1) == 'two'": "'two'",
    "f(1) == {'a': 2}": "{'a': 2}",
    "f(1) == None": "None",
    **dict.fromkeys(
        ("f(1) and not (f(1) - {2})", "len(f(1)) == 1 and len(f(1) - {2}) == 0", "set(f(1)) >= {2}"), "{2}"
    ),
    **dict.fromkeys(("2 in f(1)", "sorted(f(1)) == [2]", "list(f(1)) == [2]", "f(1)[0] == 2", "f(1) == [2]"), "[2]"),
}
"""What is right where 2 is not."""


def asserted(expression: str) -> str:
    return f"import math, operator\nfrom collections import Counter\nassert {expression}"


@pytest.mark.parametrize("base", ["", "(ValueError)", *(f"({kind.__name__})" for kind in names.PLAIN_BASES)])
@pytest.mark.parametrize("truth", [True, False])
def test_no_comparison_with_a_plain_value_is_the_objects_own(base: str, truth: bool, apart: Judge) -> None:
    program = ALWAYS.format(base=base, truth=truth) + "def f(x): return Always()"
    for expression in COMPARISONS:
        assert apart(program, asserted(expression)) is not None, expression


@pytest.mark.parametrize("expression", COMPARISONS)
def test_the_right_value_passes_each_of_these_comparisons(expression: str, apart: Judge) -> None:
    assert apart(f"def f(x): return {RIGHT.get(expression, '2')}", asserted(expression)) is None


def test_an_array_that_compares_by_element_passes_nothing(apart: Judge) -> None:
    program = (
        "class Array:\n    def __init__(self, v): self.v = v\n    def __eq__(self, o): return Array(True)\n"
        "    def __bool__(self): return True\n    def all(self): return True\ndef f(x): return Array(x)"
    )
    assert apart(program, "assert f(1) == 2") is not None
    assert apart(program, "assert (f(1) == 2).all()") is not None


def test_an_object_whose_class_takes_methods_away_or_claims_a_base_passes_nothing(
    apart: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "class O: pass\ndef f(x): return O()"
    for specials in (["-__eq__", "-__hash__", "-_mirror_peer", "-__slots__"], ["__eq__", "__class__", "_mirror_base"]):
        for base in (None, int, bool, object, "int"):
            monkeypatch.setitem(SERVED, "describe", lambda *_, b=base, s=specials: ("O", None, [], s, b, ""))
            assert apart(program, "assert f(1) == 2") is not None, (specials, base)


def test_a_right_operand_of_a_derived_class_has_no_say(apart: Judge) -> None:
    program = """
class I(int):
    def __radd__(self, o): return 4
    def __rsub__(self, o): return 0
    __eq__ = __lt__ = lambda s, o: True
    __hash__ = None
def f(x): return I(1)
"""
    assert apart(program, "assert 1 + f(1) == 2 and 1 - f(1) == 0 and f(1) == 1") is None
    for claim in ("5 + f(1) == 4", "5 - f(1) == 0", "f(1) == 2", "2 == f(1)", "f(1) < 0", "3 in [f(1)]"):
        assert apart(program, f"assert {claim}") is not None, claim


def test_a_container_cannot_be_emptied_while_it_is_compared(apart: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "class I(int): pass\nheld = I.held = {1: I(2), 3: 4}\ndef f(x): return held"
    tests = "r = f(1)\nassert r == {1: 2, 3: 5}"
    assert type(apart(program, tests)) is AssertionError
    copy = names.plain_copy
    monkeypatch.setattr(names, "plain_copy", lambda item: (copy(item), type(item).held.clear())[0])
    assert isinstance(apart(program, tests), PeerLost)
    program = (
        "class P:\n    def __eq__(self, o): held.clear(); return True\nheld = {1: P(), 3: 4}\ndef f(x): return held"
    )
    assert isinstance(apart(program, "p, r = P(), f(1)\nassert r == {1: p, 3: 5}"), PeerLost)


@pytest.mark.parametrize(
    ("tests", "reaches"),
    [
        ("secret = 5\nf(lambda g, *a: g(*a))", "f.__globals__"),
        ("secret = 5\nf(lambda g, *a: g(*a))", "f.__code__"),
        ("secret = 5\ndef gen():\n    yield 5\nf(gen())", "f.gi_frame"),
        ("class T:\n    _secret = 5\nf(T())", "f._secret"),
        ("class T:\n    def go(self): pass\nf(T())", "f.go.__globals__"),
        ("class T:\n    def go(self): pass\nf(T())", "f.go.__func__"),
        ("class T:\n    def go(self): pass\nf(T())", "f.__class__.go.__globals__"),
        ("class T: pass\nf(T())", "setattr(f, '_x', 1)"),
        ("f(iter([5]))", "f.__setstate__"),
        ("calls = [5]\nf(calls.append)", "f.__self__"),
        ("import functools\nf(functools.partial(print, 5))", "f.args"),
        ("import re\nf(re.compile('5'))", "f.pattern"),
    ],
)
def test_a_program_reaches_nothing_of_the_tests_through_what_they_lend_it(
    tests: str, reaches: str, apart: Judge
) -> None:
    program = f"def f(f):\n    value = {reaches}\n    raise LookupError(repr(value))\n"
    ended = apart(program, tests)
    if isinstance(ended, LookupError):
        assert "Mirror" in str(ended) or "answer." in str(ended), ended
    else:
        assert isinstance(ended, AttributeError | PermissionError), ended


@pytest.mark.parametrize(
    "name", ["eval", "exec", "getattr", "type", "open", "__import__", "compile", "vars", "globals"]
)
def test_a_lent_function_cannot_be_made_to_use_dangerous_ones(name: str, apart: Judge) -> None:
    program = f"import builtins\ndef f(call):\n    return call(builtins.{name}, 'secret')\n"
    tests = """
secret = 'sesame'
try: r = f(lambda g, x: g(x))
except Exception as error: r = error
assert 'sesame' not in str(r)
"""
    assert apart(program, tests) is None
    assert not names.may_be_named("builtins", name)


def test_only_the_standard_librarys_own_objects_have_its_names() -> None:
    for name in names.SAFE_BUILTINS:
        assert names.standard_name(getattr(builtins, name)) == ("builtins", name)
    assert names.standard_name(type("int", (), {"__module__": "builtins"})) is None
    assert names.standard_name(mirrors.Mirror) is None
