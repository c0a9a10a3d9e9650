"""Targets that fail on purpose, for the tests of ``python -m tests.fuzz`` itself (``--module``)."""

from __future__ import annotations

import os
import random
import time

from tests.fuzz.driver import Target


class _Counted(Target):
    suffix = ".txt.in"
    memory_bytes = 0

    def start(self) -> None:
        self.made = 0

    def make(self, rng: random.Random) -> bytes:
        self.made += 1
        return f"{self.made} {rng.random()}".encode()


class WrongOnce(_Counted):
    """The third input is a finding; the others take a while."""

    name = "wrong_once"

    def check(self, data: bytes) -> None:
        if data.startswith(b"3 "):
            raise KeyError("field")
        time.sleep(0.02)


class Fine(_Counted):
    """Finds nothing."""

    name = "fine"

    def check(self, data: bytes) -> None:
        time.sleep(0.02)


class Ends(_Counted):
    """The third input of every process ends it."""

    name = "ends"

    def check(self, data: bytes) -> None:
        if data.startswith(b"3 "):
            os._exit(7)
        time.sleep(0.3)


TARGETS = (WrongOnce, Fine, Ends)
