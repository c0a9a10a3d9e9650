"""Resuming from a checkpoint of somebody else's, whose documents agree with its manifest and are of another shape."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fathom.checkpoint import store
from fathom.checkpoint.writer import MANIFEST
from fathom.errors import FathomError
from fathom.files import file_sha256
from fathom.train import Trainer
from tests.fuzz.json_damage import damage

MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def done(tmp_path: Path, make_trainer: MakeTrainer) -> Path:
    """The last checkpoint of a stage."""
    make_trainer(tmp_path).run()
    found = store.latest(tmp_path / "checkpoints")
    assert found is not None
    return found


def replace(checkpoint: Path, name: str, document: Any) -> None:
    """Write a document of a checkpoint, with the size and SHA-256 that its manifest says."""
    (checkpoint / name).write_text(json.dumps(document))
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    if name != MANIFEST:
        entry = {"bytes": (checkpoint / name).stat().st_size, "sha256": file_sha256(checkpoint / name)}
        manifest["files"][name] = entry
        (checkpoint / MANIFEST).write_text(json.dumps(manifest))


STATES: list[Callable[[dict[str, Any]], Any]] = [
    lambda state: [state],
    lambda state: None,
    lambda state: state | {"loader": None},
    lambda state: state | {"loader": []},
    lambda state: state | {"loader": {}},
    lambda state: state | {"step": "12"},
    lambda state: state | {"step": -1},
    lambda state: state | {"step": 10**30},
    lambda state: state | {"tokens": None},
    lambda state: state | {"seconds": float("nan")},
    lambda state: state | {"other": 1},
]


@pytest.mark.parametrize("number", range(len(STATES)))
def test_states_of_another_shape_are_refused(number: int, done: Path, make_trainer: MakeTrainer) -> None:
    state = json.loads((done / "state.json").read_text())
    replace(done, "state.json", STATES[number](state))
    with pytest.raises(FathomError) as caught:
        make_trainer(done.parents[1]).run(resume=True)
    assert str(caught.value).isprintable()
    assert "; " in str(caught.value)
    replace(done, "state.json", state)
    make_trainer(done.parents[1]).run(resume=True)


def test_whatever_a_checkpoint_records_ends_in_an_error_or_a_run(done: Path, make_trainer: MakeTrainer) -> None:
    whole = {name: json.loads((done / name).read_text()) for name in (MANIFEST, "state.json", "spec.json")}
    refused = 0
    for seed in range(150):
        rng = random.Random(seed)
        name = rng.choice(list(whole))
        replace(done, name, damage(whole[name], rng))
        refusal = ""
        try:
            make_trainer(done.parents[1]).run(resume=True)
        except FathomError as error:
            refusal = str(error)
        assert refusal.isprintable()
        refused += bool(refusal)
        (done / MANIFEST).write_text(json.dumps(whole[MANIFEST]))
        replace(done, name, whole[name])
    assert refused > 75
