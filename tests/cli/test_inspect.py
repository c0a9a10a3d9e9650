"""``fathom inspect`` prints what a model is, plainly or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest

from fathom.inference.loading import find_checkpoint
from fathom.kernels.native import library
from fathom.logs import warn_once
from tests.fuzz import gguf_files


def test_a_run_is_described_in_plain_lines(finished: Path, call) -> None:
    done = call("inspect", finished)
    assert done.code == 0, done.err
    lines = [line.rstrip() for line in done.out.splitlines()]
    assert lines[0] == f"tiny  deepseek_v2, format fathom, {find_checkpoint(finished)}"
    result = {line[:19].strip(): line[19:] for line in lines if line.startswith("  ")}
    assert result["attention"].startswith("MLA-16+8, 2 heads")
    assert result["context"].startswith("192, extended from 48")
    assert result["bfloat16"].startswith("96 bytes per token")
    assert result["float32"].startswith("192 bytes per token")
    assert result["tokenizer"].startswith("byte-level BPE, ")
    assert result["chat template"] != "none"
    assert result["hf"] == "left out, for only training needs it: optimizer"
    for title in ("model", "parameters", "cache", "text", "exports"):
        assert title in lines
    assert any(line.startswith("tensors") for line in lines)
    assert any(line.endswith("model.safetensors") for line in lines)
    assert "\x1b" not in done.out


def test_json_holds_the_whole_spec(finished: Path, call) -> None:
    found = json.loads(call("inspect", finished, "--json").out)
    assert found["spec"]["moe"]["n_routed_experts"] == 8
    assert found["parameters"]["total"] == sum(row["numbers"] for row in found["tensors"])
    assert found["exports"].keys() == {"hf", "gguf", "fathom"}


@pytest.mark.usefixtures("native")
def test_the_form_that_weights_will_be_held_in_is_said_before_and_its_loss_after_they_are_read(
    tmp_path: Path, call, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, rounded = (
        gguf_files.write_model(tmp_path / f"{kind}.gguf", kind=gguf.GGMLQuantizationType[kind])
        for kind in ("Q4_1", "Q5_1")
    )
    assert "  Q4_1             60.2 kB, 14 of Q4_1, as they are" in call("inspect", exact).out
    found = call("inspect", rounded).out
    assert "14 of Q5_1, rounded by about 0.4 % of the largest of 32 numbers at most" in found
    warn_once.cache_clear()
    done = call("generate", rounded, "--prompt", "a", "--max-tokens", "1")
    assert done.code == 0, done.err
    assert "weights: 14 tensors of Q5_1 to 8 bits were rounded, which changes them by 0." in caplog.text
    monkeypatch.setattr(library, "available", lambda: False)
    monkeypatch.setattr(library, "unavailable_reason", lambda: "it was not built")
    found = call("inspect", exact).out
    assert "  native library   none, so all is widened: it was not built" in found
    assert "as they are" not in found


def test_what_is_no_model_is_refused(tmp_path: Path, call) -> None:
    call("inspect", tmp_path / "none").refused("none")
    call("inspect", tmp_path).refused(str(tmp_path))
