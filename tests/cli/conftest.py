"""A tiny run that every test of the verbs shares."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fathom.pipeline.recipe import load_run_plan
from fathom.pipeline.run import run

RECIPE = Path(__file__).parents[1] / "pipeline" / "tiny.toml"


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
