"""A tiny run that every test of the verbs shares, and the command line run in this process."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fathom.cli.main import guarded, make_app
from fathom.pipeline.recipe import load_run_plan
from fathom.pipeline.run import run

RECIPE = Path(__file__).parents[1] / "pipeline" / "tiny.toml"


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


def write_texts(folder: Path) -> Path:
    """Write forty small documents of simple sentences."""
    rng = random.Random(0)
    things = ["river", "garden", "lantern", "mountain", "tower", "friend", "stone", "window", "road", "song"]
    verbs = ["sees", "finds", "leaves", "keeps", "hears", "loves", "builds", "opens"]
    folder.mkdir(parents=True)
    for index in range(40):
        sentences = (
            f"The {rng.choice(things)} {rng.choice(verbs)} the {rng.choice(things)} of {rng.randint(1, 99)}."
            for _ in range(60)
        )
        (folder / f"{index}.txt").write_text(" ".join(sentences))
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of text."""
    return write_texts(tmp_path_factory.mktemp("corpus") / "texts")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """Return the directory of a finished run of the tiny recipe. Tests must not change it."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    ran = run(load_run_plan(RECIPE, text=[texts]), directory, cache_dir=directory / "unused")
    assert len(ran) == 9
    return directory
