"""The very first commands."""

from __future__ import annotations

import fathom
from tests.journeys.terminal import Terminal


def test_the_version_and_a_mistyped_verb_are_answered_in_one_line(terminal: Terminal) -> None:
    assert terminal.type("fathom --version").out == f"fathom {fathom.__version__}\n"
    assert terminal.type("fathom tarin", code=2).err.startswith("error: No such command 'tarin'")
