"""Adapters over published models: merged on opening, by convert, and written alone; through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fathom
from fathom.checkpoint.peft import CONFIG, read_peft, write_peft
from fathom.errors import CheckpointError
from fathom.inference.adapters import open_adapter
from fathom.model.adapters.attach import with_adapter
from tests.checkpoint.peft.test_peft import trained
from tests.command_line import Call

TOKENS = [0, 5, 9, 17, 33, 101]


@pytest.fixture(scope="module")
def adapter(publish: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = fathom.load(publish("tiny-deepseek_v2"), device="cpu", dtype="float32").model
    return write_peft(tmp_path_factory.mktemp("adapter") / "chat", base.spec, trained(base))


def test_merged_models_answer_as_the_unmerged_one(
    publish: Callable[..., Path], adapter: Path, tmp_path: Path, call: Call
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
        assert call("convert", base, tmp_path / name, "--to", form, "--adapter", adapter).code == 0
        again = fathom.load(tmp_path / name, device="cpu", dtype="float32")
        torch.testing.assert_close(again.logits(TOKENS), merged.logits(TOKENS), atol=1e-5, rtol=1e-5)
    assert call("convert", base, tmp_path / "alone", "--to", "peft", "--adapter", adapter).code == 0
    assert json.loads((tmp_path / "alone" / CONFIG).read_text())["base_model_name_or_path"] == str(base)
    first, second = read_peft(adapter, plain.spec), read_peft(tmp_path / "alone", plain.spec)
    assert all(torch.equal(first.updates[name].b, second.updates[name].b) for name in first.updates)


@pytest.mark.parametrize(
    ("given", "problem"),
    [("nowhere", "no such directory; give an adapter's"), (".", "holds no adapter; give a directory with")],
)
def test_what_is_no_adapter_is_refused(given: str, problem: str, publish: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=problem):
        fathom.load(publish("tiny-llama"), adapter=tmp_path / given)


def test_faults_are_one_line_and_write_nothing(
    publish: Callable[..., Path], adapter: Path, tmp_path: Path, call: Call
) -> None:
    out, given = tmp_path / "out", publish("tiny-llama")
    call("convert", given, out, "--to", "hf", "--adapter", adapter).refused("does not fit tiny-llama")
    call("convert", given, out, "--to", "peft").refused("has no adapter; give a run that trained one, or --adapter")
    call("chat", adapter).refused("give the adapter beside it (--adapter")
    assert not out.exists()
