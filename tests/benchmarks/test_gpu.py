"""The GPU's benchmark runs whole in its smoke form, and says what it could not measure."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from fathom.plan.count import count_parameters


def test_the_smoke_form_measures_every_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--smoke", "--out", str(tmp_path)])
    gpu.main()
    result = json.loads((tmp_path / "gpu-smoke.json").read_text())
    assert {name for name in gpu.SECTIONS if "failed" in result[name] or "left_out" in result[name]} == set()
    assert result["training"]["tokens_per_second"] > 0
    assert {"limits", "shares"} <= set(result)
    assert "latent_decoding[0].bytes_per_second" in result["shares"]


def test_failures_and_an_empty_budget_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(meter: gpu.Meter, sizes: gpu.Sizes) -> object:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(gpu, "SECTIONS", {"limits": fails})
    cpu = torch.device("cpu")
    failed = {"failed": "RuntimeError: no kernel image is available"}
    assert gpu.measure(cpu, gpu.smoke_sizes(), 60.0) == {"limits": failed, "shares": {}}
    assert gpu.measure(cpu, gpu.smoke_sizes(), -1.0)["limits"] == {"left_out": "the -1 s were over"}


def test_the_trained_mixture_has_one_to_two_billion_parameters() -> None:
    assert 1e9 < count_parameters(gpu.mixture()).total < 2e9
