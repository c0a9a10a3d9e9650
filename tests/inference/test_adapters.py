"""Adapters over published models: merged on opening, by convert, and written alone; through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fathom
from fathom.checkpoint.peft import CONFIG, read_peft, write_peft
from fathom.cli.main import guarded, make_app
from fathom.errors import CheckpointError
from fathom.inference.adapters import open_adapter
from fathom.model.adapters.attach import with_adapter
from tests.checkpoint.peft.test_peft import trained

TOKENS = [0, 5, 9, 17, 33, 101]


def main(arguments: list[str]) -> int:
    try:
        guarded(lambda: make_app()(arguments))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture(scope="module")
def adapter(publish: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = fathom.load(publish("tiny-deepseek_v2"), device="cpu", dtype="float32").model
    return write_peft(tmp_path_factory.mktemp("adapter") / "chat", base.spec, trained(base))


def test_merged_models_answer_as_the_unmerged_one(
    publish: Callable[..., Path], adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = publish("tiny-deepseek_v2")
    plain = fathom.load(base, device="cpu", dtype="float32")
    view = with_adapter(plain.model, open_adapter(adapter, plain.spec))
    with torch.inference_mode():
        expected = view.logits(view(torch.tensor([TOKENS])).hidden_BTD[0])
    merged = fathom.load(base, adapter=adapter, device="cpu", dtype="float32")
    torch.testing.assert_close(merged.logits(TOKENS), expected, atol=1e-4, rtol=1e-4)
    assert (plain.logits(TOKENS) - expected).abs().max() > 0.1
    for form, name in (("hf", "merged"), ("gguf", "merged.gguf"), ("fathom", "own")):
        command = ["convert", str(base), str(tmp_path / name), "--to", form, "--adapter", str(adapter)]
        assert main(command) == 0
        again = fathom.load(tmp_path / name, device="cpu", dtype="float32")
        torch.testing.assert_close(again.logits(TOKENS), merged.logits(TOKENS), atol=1e-5, rtol=1e-5)
    alone = ["convert", str(base), str(tmp_path / "alone"), "--to", "peft", "--adapter", str(adapter)]
    assert main(alone) == 0
    assert json.loads((tmp_path / "alone" / CONFIG).read_text())["base_model_name_or_path"] == str(base)
    first, second = read_peft(adapter, plain.spec), read_peft(tmp_path / "alone", plain.spec)
    assert all(torch.equal(first.updates[name].b, second.updates[name].b) for name in first.updates)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("given", "problem"),
    [("nowhere", "no such directory; give an adapter's"), (".", "holds no adapter; give a directory with")],
)
def test_what_is_no_adapter_is_refused(given: str, problem: str, publish: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=problem):
        fathom.load(publish("tiny-llama"), adapter=tmp_path / given)


def test_faults_are_one_line_and_write_nothing(
    publish: Callable[..., Path], adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = str(publish("tiny-llama"))
    assert main(["convert", given, str(out), "--to", "hf", "--adapter", str(adapter)]) == 2
    assert "does not fit tiny-llama" in capsys.readouterr().err
    assert main(["convert", given, str(out), "--to", "peft"]) == 2
    assert "has no adapter; give a run that trained one, or --adapter" in capsys.readouterr().err
    assert main(["chat", str(adapter)]) == 2
    assert "give the adapter beside it (--adapter" in capsys.readouterr().err
    assert not out.exists()
