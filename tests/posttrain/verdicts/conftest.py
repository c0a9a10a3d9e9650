from __future__ import annotations

import os
import sys
import threading
import types
from collections.abc import Callable
from typing import NamedTuple

import pytest

from fathom.posttrain.verdicts.peer import Peer
from fathom.posttrain.verdicts.test_side import run_tests


class Style(NamedTuple):
    """A right program; a wrong one, or what to replace in the right one to have it; and the tests."""

    right: str
    otherwise: str | tuple[str, str]
    tests: str

    @property
    def wrong(self) -> str:
        return self.otherwise if isinstance(self.otherwise, str) else self.right.replace(*self.otherwise)


Judge = Callable[[str, str], BaseException | None]
"""Runs a program and its tests; returns what the tests raised."""


def judge_directly(program: str, tests: str) -> BaseException | None:
    """The oracle: both in one module."""
    module = types.ModuleType("answer")
    sys.modules["answer"] = module
    try:
        exec(compile(program, "<program>", "exec"), module.__dict__)
        exec(compile(tests, "<tests>", "exec"), module.__dict__)
    except BaseException as error:
        return error
    finally:
        del sys.modules["answer"]
    return None


def judge_apart(program: str, tests: str) -> BaseException | None:
    """Both sides of the pipes in this process, a thread each."""
    module = types.ModuleType("answer")
    sys.modules["answer"] = module
    exec(compile(program, "<program>", "exec"), module.__dict__)
    asked, asks = os.pipe()
    answered, answers = os.pipe()
    peer = Peer(asked, answers, strict=False)
    peer.namespace = module.__dict__
    thread = threading.Thread(target=peer.serve_all, daemon=True)
    thread.start()
    try:
        run_tests(tests, answered, asks)
    except BaseException as error:
        return error
    finally:
        for name in ("answer", "checks"):
            sys.modules.pop(name, None)
        os.close(asks)
        thread.join(10)
        for fd in (asked, answered, answers):
            os.close(fd)
    return None


@pytest.fixture
def apart() -> Judge:
    return judge_apart


@pytest.fixture
def directly() -> Judge:
    return judge_directly
