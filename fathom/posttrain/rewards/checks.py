"""The tests of a problem as one program that runs all of them, be they HumanEval's, pytest's or unittest's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_IS_MAIN = ("__name__ == '__main__'", "'__main__' == __name__")
_UNITTEST = """
import unittest as _unittest

class _Result(_unittest.TestResult):
    def addSkip(self, test, reason):
        method = getattr(type(test), test._testMethodName)
        if not (getattr(type(test), "__unittest_skip__", False) or getattr(method, "__unittest_skip__", False)):
            raise AssertionError(f"{test} was skipped by the program: {reason}")

_result = _Result()
for _case in (%s,):
    _unittest.defaultTestLoader.loadTestsFromTestCase(_case).run(_result)
for _test, _why in _result.errors + _result.failures + _result.expectedFailures:
    raise AssertionError(f"{_test}: {_why}")
assert not _result.unexpectedSuccesses, "a test that should fail did not"
assert _result.testsRun, "no test was run"
"""


def checks_of(details: Mapping[str, Any]) -> str:
    """The tests as a program: HumanEval's define ``check``, which is then called with the function asked for.

    Functions named ``test...`` without arguments and unittest's cases that the tests themselves never run are run at
    the end, as pytest does, and so is what stands under ``if __name__ == "__main__"``: else every answer would pass.
    What the prompt defines beside the function asked for comes first, so that tests that use it need not trust the
    answer's.
    """
    tests, entry_point = str(details["tests"]), details.get("entry_point")
    if entry_point and re.search(r"^def check\(", tests, re.M):
        checks = f"{tests}\n\ncheck({entry_point})\n"
    else:
        checks = tests + _calls(tests)
    return _helpers(str(details.get("prompt", "")), str(entry_point)) + checks


def _calls(tests: str) -> str:
    """What runs the tests that ``tests`` define and never run; empty where there are none or no Python."""
    body = _parsed(tests)
    used = {node.id for part in body for node in ast.walk(part) if isinstance(node, ast.Name)}
    functions = [part for part in body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
    lines = [
        f"__import__('asyncio').run({part.name}())" if isinstance(part, ast.AsyncFunctionDef) else f"{part.name}()"
        for part in functions
        if part.name.startswith("test") and part.name not in used and _takes_nothing(part.args)
    ]
    cases = [] if _runs_unittest(body) else [name for name in _cases(body) if name not in used]
    lines += _main_blocks(body)
    if cases:
        lines.append(_UNITTEST % ", ".join(cases))
    return "".join(f"\n{line}" for line in ["", *lines, ""]) if lines else ""


def _parsed(source: str) -> list[ast.stmt]:
    """The statements of a source; none where it is no Python."""
    try:
        return ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _main_blocks(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Yield what tests do only where they are the main program, which they are not here, but to start a runner."""
    for part in body:
        if isinstance(part, ast.If) and ast.unparse(part.test) in _IS_MAIN:
            inner = "\n".join(map(ast.unparse, part.body))
            if not re.search(r"\b(unittest|pytest)\.main\(", inner):
                yield inner


def _takes_nothing(arguments: ast.arguments) -> bool:
    required = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    return required == 0 and all(default is not None for default in arguments.kw_defaults)


def _cases(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Yield the classes whose base is named as one of unittest's cases."""
    for part in body:
        if isinstance(part, ast.ClassDef) and any(ast.unparse(base).endswith("TestCase") for base in part.bases):
            yield part.name


def _runs_unittest(body: Sequence[ast.stmt]) -> bool:
    """Whether tests at module level, in no ``if __name__ == "__main__"``, run unittest themselves."""
    plain = [part for part in body if isinstance(part, ast.Expr | ast.Assign | ast.For | ast.With | ast.Assert)]
    return any(re.search(r"\b(unittest\.main|TextTestRunner|\.run)\(", ast.unparse(part)) for part in plain)


def _helpers(prompt: str, entry_point: str) -> str:
    """The definitions of a prompt but the one asked for, and its imports; empty where there are none or no Python."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    needed = (*definitions, ast.Import, ast.ImportFrom)
    body = _parsed(f"{prompt}\n    pass\n")
    kept = [part for part in body if not (isinstance(part, definitions) and part.name == entry_point)]
    if len(kept) == len(body) or not any(isinstance(part, needed) for part in kept):
        return ""
    return ast.unparse(ast.Module(kept, type_ignores=[])) + "\n\n"
