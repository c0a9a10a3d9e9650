"""The command line run in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fathom.cli.main import guarded, make_app


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one call of the command line ended."""

    code: int
    out: str
    err: str

    def refused(self, *words: str) -> None:
        """Check that the call ended with an error that holds ``words``: one line, or a block for several faults."""
        assert self.code == 2, (self.out, self.err)
        first, *more = self.err.splitlines()
        assert first.startswith("error: ")
        assert bool(more) == first.endswith("faults:"), self.err
        assert all(line.startswith("  ") for line in more), self.err
        for word in words:
            assert word in self.err


Call = Callable[..., Outcome]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs ``fathom ARGUMENTS`` in this process."""

    def fathom(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            guarded(lambda: make_app()([str(argument) for argument in arguments]))
        code = ended.value.code
        captured = capsys.readouterr()
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    return fathom
