"""Too little text is named before the first training step, with remedies that work; enough is counted in passes."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from fathom.errors import SpecError
from fathom.pipeline.recipe import load_run_plan
from fathom.pipeline.run import run
from fathom.spec.train import AdamWSpec, BatchSpec, TrainSpec
from fathom.train.preflight import FEW_PASSES, TextReading, reading_lines
from tests.recording_progress import RecordingProgress

TINY = Path(__file__).with_name("tiny.toml")
SHORT = "needle.lengths=[40]"


def notes(folder: Path, words: int) -> Path:
    rng = random.Random(3)
    folder.mkdir()
    lines = [" ".join(rng.choice(["river", "road", "hill", "sea", "quiet"]) + str(i) for i in range(9)) + "."]
    lines += [" ".join(f"{rng.randrange(10**6)}" for _ in range(8)) + "." for _ in range(words // 8)]
    (folder / "notes.md").write_text("\n\n".join(lines))
    return folder


def train(text: Path, out: Path, *changes: str, until: str | None = None) -> RecordingProgress:
    progress = RecordingProgress()
    plan = load_run_plan(TINY, overrides=changes, text=[text])
    run(plan, out, cache_dir=out.parent / "cache", until=until, progress=progress, restart=out.exists())
    return progress


def test_too_little_text_is_refused_before_training_with_remedies_that_work(tmp_path: Path) -> None:
    text, out = notes(tmp_path / "few", 16), tmp_path / "out"
    more = ("pretrain.train.total_tokens=500000", "needle.lengths=[40,192]")
    with pytest.raises(SpecError, match=r"text: pretrain.train.total_tokens: 500,000 tokens are [\d,]+ pass") as caught:
        train(text, out, *more)
    assert not (out / "pretrain").exists()
    message = str(caught.value)
    assert "stretch.train.sequence_length: source 'few' has" in message
    assert re.search(r"needle\.lengths: \d+ tokens are held out", message)
    remedies = [found.rstrip(";,") for found in re.findall(r"--set (\S+)", message)]
    found = train(text, out, *more, *remedies, "stretch.train.total_tokens=384", until="stretch")
    assert sum("passes over" in line for line in found.messages) == 2
    assert (out / "stretch" / "metrics.jsonl").exists()


def test_passes_are_said_and_many_are_warned_of(tmp_path: Path) -> None:
    text = notes(tmp_path / "some", 32)
    found = train(text, tmp_path / "out", "pretrain.train.total_tokens=2400", SHORT, until="pretrain")
    said = next(line for line in found.messages if "passes over" in line)
    assert re.fullmatch(r"2\.4k tokens = [\d.]+ passes over [\d.]+k? tokens of text", said)
    warned = next(line for line in found.messages if "is read" in line)
    fewer = re.search(r"--set (pretrain\.train\.total_tokens=\d+)", warned)
    assert fewer is not None
    found = train(text, tmp_path / "out", fewer[1], SHORT, until="pretrain")
    assert not any("is read" in line for line in found.messages)


@pytest.mark.parametrize("weight", [1.0, 7.0])
def test_a_source_that_its_weight_has_read_too_often_is_named(weight: float) -> None:
    spec = TrainSpec(
        sequence_length=64,
        total_tokens=64 * 4 * 100,
        batch=BatchSpec(size=4, micro_batch_size=4),
        optimizer=AdamWSpec(lr=1e-3),
    )
    text = TextReading(tokens={"much": 50_000, "little": 3_000}, weights={"much": 1.0, "little": weight})
    lines = reading_lines("a.train", spec, text)
    assert lines[0] == "25.6k tokens = 0.48 passes over 53k tokens of text"
    read = 25_600 * weight / (1 + weight) / 3_000
    assert text.most(25_600) == ("little", pytest.approx(read))
    assert [f"source 'little' is read {read:,.0f} times" in line for line in lines[1:]] == [True] * (read > FEW_PASSES)
