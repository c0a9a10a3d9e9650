"""``fathom train``: interrupt and resume, restart, refuse, and leave a complete run behind."""

from __future__ import annotations

import gzip
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import fathom
from fathom.checkpoint import store

RECIPE = Path(__file__).parents[1] / "pipeline" / "tiny.toml"


def last_metrics(run: Path, step: str) -> dict[str, object]:
    lines = (run / step / "metrics.jsonl").read_text().splitlines()
    return dict(json.loads(lines[-1]))


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    code = "from fathom.cli.main import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_end(finished: Path, texts: Path, tmp_path: Path, call) -> None:
    directory = tmp_path / "run"
    process = start("train", RECIPE, "--text", texts, "--out", directory, "--set", "needle.trials=1")
    metrics = directory / "pretrain" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_bytes().splitlines()) >= 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("stopped: SIGTERM")
    again = shlex.split(errors.splitlines()[-1].partition("continue with: ")[2])
    assert again == ["fathom", "train", "--out", str(directory), "--resume"]
    state = json.loads((directory / "state.json").read_text())["steps"]
    assert state["pretrain"]["status"] == "interrupted"
    stopped = store.latest(directory / "pretrain" / "checkpoints")
    assert stopped is not None
    assert stopped.name < "step-00000040"

    process = start(*again[1:])
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "corpus" not in output.splitlines()[0]
    assert json.loads((directory / "needle.json").read_text())["trials"] == 1
    for step in ("pretrain", "stretch"):
        assert last_metrics(directory, step)["loss"] == pytest.approx(last_metrics(finished, step)["loss"], abs=1e-5)
    tensors = [
        store.Checkpoint.open(store.latest(d / "stretch" / "checkpoints")).tensors("model")
        for d in (finished, directory)
    ]
    for name, tensor in tensors[0].items():
        assert torch.allclose(tensor, tensors[1][name], atol=1e-5), name


def test_a_finished_run_is_left_alone(finished: Path, texts: Path, call) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and "json" in path.suffix}
    refused = call("train", RECIPE, "--text", texts, "--out", finished)
    refused.refused("already holds a run", "--resume", "--restart")
    assert refused.out == ""
    done = call("train", RECIPE, "--text", texts, "--out", finished, "--resume")
    assert done.code == 0
    assert "nothing to do" in done.out
    after = {path: path.stat().st_mtime_ns for path in before}
    unchanged = [path for path in before if path.parent != finished]
    assert {path: after[path] for path in unchanged} == {path: before[path] for path in unchanged}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.hidden_size=64", ["model.hidden_size: was 32", "is now 64", "--restart"]),
        ("pretrain.train.total_tokens=9999", ["steps.pretrain.train.total_tokens", "'pretrain'"]),
        ("tokenizer.vocab_size=320", ["steps.tokenizer.vocab_size", "was 384"]),
        ("corpus.min_chars=5", ["steps.corpus.min_chars", "another --out"]),
    ],
)
def test_changed_inputs_of_finished_steps_are_refused(
    finished: Path, texts: Path, call, change: str, words: list[str]
) -> None:
    state = (finished / "state.json").read_bytes()
    call("train", RECIPE, "--text", texts, "--out", finished, "--resume", "--set", change).refused(*words)
    assert (finished / "state.json").read_bytes() == state


def test_cadences_may_change_and_deleted_results_are_made_again(
    finished: Path, texts: Path, tmp_path: Path, call
) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(finished, directory)
    state = json.loads((directory / "state.json").read_text())
    for step in ("needle", "report"):
        del state["steps"][step]
    (directory / "state.json").write_text(json.dumps(state))
    shutil.rmtree(directory / "shards")
    changes = ["--set", "pretrain.train.log_every_steps=7", "--set", "needle.trials=1"]
    done = call("train", RECIPE, "--text", texts, "--out", directory, "--resume", *changes)
    assert done.code == 0, done.err
    assert [line.split("] ")[1] for line in done.out.splitlines() if line.startswith("[")] == [
        "shards",
        "needle",
        "report",
    ]
    assert json.loads((directory / "needle.json").read_text())["trials"] == 1


def test_how_an_unfinished_step_learns_changes_with_leave(finished: Path, texts: Path, tmp_path: Path, call) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(finished, directory)
    state = json.loads((directory / "state.json").read_text())
    state["steps"] = {name: state["steps"][name] for name in ("corpus", "tokenizer", "shards", "pretrain")}
    state["steps"]["pretrain"]["status"] = "interrupted"
    (directory / "state.json").write_text(json.dumps(state))
    changes = ["--set", "pretrain.train.optimizer.lr=1e-4", "--set", "pretrain.train.total_tokens=8000"]
    command = ["train", RECIPE, "--text", texts, "--out", directory, "--resume", "--until", "pretrain", *changes]
    call(*command).refused("steps.pretrain.train.optimizer.lr: was 0.003", "add --allow-changes to continue with it")
    done = call(*command, "--allow-changes")
    assert done.code == 0, done.err
    assert last_metrics(directory, "pretrain")["lr"] < 1e-4
    assert last_metrics(directory, "pretrain")["tokens"] >= 8000


def test_restart_removes_the_run_and_nothing_else(texts: Path, tmp_path: Path, call) -> None:
    directory = tmp_path / "run"
    arguments = ["train", RECIPE, "--text", texts, "--out", directory, "--until", "corpus"]
    stopped = call(*arguments)
    assert stopped.code == 0
    assert f"stopped after corpus; continue with: fathom train --out {directory} --resume" in " ".join(
        stopped.out.split()
    )
    marker = directory / "corpus" / "marker"
    marker.touch()
    assert call(*arguments, "--restart").code == 0
    assert not marker.exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    refused = call("train", RECIPE, "--text", texts, "--out", tmp_path / "other", "--restart")
    refused.refused("is not empty and holds no run")
    assert (tmp_path / "other" / "precious.txt").read_text() == "mine"


def test_a_data_sets_clone_is_trained_on_and_what_is_left_out_is_listed(tmp_path: Path, call) -> None:
    clone, out = tmp_path / "clone", tmp_path / "run"
    clone.mkdir()
    (clone / "README.md").write_text("---\nlicense: mit\n---\n# The card of the data set\n")
    rows = [
        json.dumps({"story": f"The river of tale {n} runs down to the sea, and {n * n} boats go with it."})
        for n in range(60)
    ]
    with gzip.open(clone / "train.jsonl.gz", "wt") as file:
        file.write("\n".join([*rows, '{"story": "cut']))
    arguments = ["train", RECIPE, "--text", clone, "--out", out, "--until", "corpus"]
    call(*arguments).refused("train.jsonl.gz", "no column of text", "'story'", "--text-column")
    done = call(*arguments, "--restart", "--text-column", "story")
    assert done.code == 0
    shown = " ".join(done.out.split())
    assert "clone: left out descriptions beside data files: 1, e.g. README.md" in shown
    assert "clone: left out unreadable records: 1, e.g." in shown
    source = json.loads((out / "corpus" / "summary.json").read_text())["sources"]["clone"]
    assert source["extracted"] == 60
    assert source["left_out"]["descriptions beside data files"] == {"count": 1, "examples": ["README.md"]}


def test_the_report_is_complete(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == [
        "corpus", "tokenizer", "shards", "pretrain", "stretch", "evaluate", "needle", "sample",
    ]  # fmt: skip
    assert all(stage["seconds"] > 0 for stage in report["stages"])
    bits = report["bits_per_byte"]["texts"]
    assert 0 < bits["end"] < 0.7 * bits["start"]
    assert report["cache_bytes_per_token"] == {"MHA": 128, "GQA": 64, "MQA": 64, "MLA": 96}
    assert 0 < report["experts"]["load_entropy"] <= 1
    assert report["experts"]["max_over_mean"] >= 1
    needle = report["needle"]
    assert (needle["lengths"], needle["depths"]) == ([160, 192], [0.0, 1.0])
    assert len(needle["accuracy"]) == len(needle["gain_bits"]) == 2
    assert report["model"]["tokens"] == 7680 + 1536
    page = (finished / "report.html").read_text()
    assert "://" not in page
    assert page.count("<svg") == 5


def test_the_second_stage_begins_with_the_weights_of_the_first(finished: Path) -> None:
    assert fathom.load(finished / "pretrain").spec.max_position_embeddings == 48
    model = fathom.load(finished)
    assert model.spec.max_position_embeddings == 192
    assert model.spec.rope.scaling is not None
    first = json.loads((finished / "stretch" / "metrics.jsonl").read_text().splitlines()[0])
    random = math.log(model.tokenizer.vocab_size)
    assert first["step"] == 1
    assert first["lm_loss"] < 0.75 * random
