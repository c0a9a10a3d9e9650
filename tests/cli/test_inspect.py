"""``fathom inspect`` prints what a model is, plainly or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from fathom.inference.loading import find_checkpoint


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


def test_what_is_no_model_is_refused(tmp_path: Path, call) -> None:
    call("inspect", tmp_path / "none").refused("none")
    call("inspect", tmp_path).refused(str(tmp_path))
