"""Processor, native kernels, memory, accelerator and OpenMP's settings."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fathom.cli.diagnosis.finding import Finding
from fathom.errors import SpecError
from fathom.products import VARIABLE, forced_choice, kept_choice
from fathom.progress import size
from fathom.system import available_memory, memory_limit, processor_facts, usable_cores

FEATURES: Mapping[str, tuple[str, ...]] = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "AMX": ("amx_tile",),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "NEON": ("asimd", "neon"),
    "dot product": ("asimddp",),
    "SVE": ("sve",),
}
"""Names of processor features, and the kernel's words for them."""
_LEAST_MEMORY = 1 << 30
_LIBRARIES = {"blas": "BLAS", "onednn": "oneDNN"}
_SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_PROC_BIND", "MKL_NUM_THREADS")


def hardware_findings(torch: Mapping[str, object], root: Path = Path("/")) -> Iterator[Finding]:
    """Yield findings; ``torch`` are its facts, empty where it could not be imported. ``root`` is for tests."""
    yield from _processor(root)
    yield from _memory(root)
    if torch:
        yield accelerator(torch, root)
        yield products_finding(str(torch.get("version", "")))
        yield native_kernels(torch.get("native"))
    chosen = [f"{name}={os.environ[name]}" for name in _SETTINGS if name in os.environ]
    chosen += [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("KMP_")]
    yield Finding("machine", "OpenMP", ", ".join(chosen) or "no setting")


def accelerator(torch: Mapping[str, object], root: Path = Path("/")) -> Finding:
    """Return what torch can compute on, and whether its build fits the machine's accelerator."""
    version = str(torch.get("version", ""))
    build = f"CUDA {torch['cuda']}" if torch.get("cuda") else f"ROCm {torch['hip']}" if torch.get("hip") else "CPU"
    devices = torch.get("devices")
    if isinstance(devices, Sequence) and devices:
        shown = ", ".join(f"{name} ({size(memory)})" for name, memory in devices)
        return Finding("machine", "accelerator", f"{shown}; torch {version} for {build}")
    if torch.get("mps"):
        return Finding("machine", "accelerator", f"Apple's GPU (mps); torch {version}")
    nvidia = (root / "proc/driver/nvidia/version").exists() and (root / "dev/nvidia0").exists()
    amd = (root / "dev/kfd").exists() and bool(list((root / "dev/dri").glob("renderD*")))
    card = "an NVIDIA GPU" if nvidia else "an AMD GPU" if amd else None
    if card is None:
        return Finding("machine", "accelerator", f"none; torch {version} for {build} computes on the processor")
    wanted = torch.get("cuda") if nvidia else torch.get("hip")
    if not wanted:
        index = "https://download.pytorch.org/whl/" + ("cu128" if nvidia else "rocm6.4")
        remedy = f"pip install --force-reinstall torch --index-url {index}"
        return Finding("machine", "accelerator", f"{card}, but torch {version} is built for {build}", "broken", remedy)
    reason = torch.get("reason") or "it gives no reason"
    remedy = "update the driver, or install a torch for the driver there is: https://pytorch.org/get-started/locally"
    return Finding("machine", "accelerator", f"{card}, which torch {version} cannot use ({reason})", "broken", remedy)


def native_kernels(found: object) -> Finding:
    """Return whether the native library runs; ``found`` are its ``facts`` and ``threads``, or what is ``broken``."""
    facts = found if isinstance(found, Mapping) else {}
    if "broken" in facts:
        return Finding(
            "machine", "native kernels", str(facts["broken"]), "broken", "correct or unset FATHOM_ISA and FATHOM_NATIVE"
        )
    if facts.get("isa"):
        return Finding(
            "machine", "native kernels", f"{facts['isa']} (of {', '.join(facts['isas'])}), {facts['threads']} threads"
        )
    reason = str(facts.get("reason", "they cannot be asked"))
    if not facts.get("command"):
        return Finding("machine", "native kernels", f"none: {reason}")
    compiler = "xcode-select --install" if sys.platform == "darwin" else "apt install gcc"
    remedy = f"faster generation on the processor: {compiler}, then {facts['command']}"
    return Finding("machine", "native kernels", f"none: {reason}", "missing", remedy)


def processor_features(words: str) -> list[str]:
    """Return the features that /proc/cpuinfo's words name."""
    given = set(words.lower().split())
    return [name for name, flags in FEATURES.items() if given & set(flags)]


def _processor(root: Path) -> Iterator[Finding]:
    lines = processor_facts(root)
    yield Finding("machine", "processor", lines["model name"])
    yield Finding("machine", "cores", f"{usable_cores(root):g} usable of {os.cpu_count()}")
    found = processor_features(lines.get("flags", "") + " " + lines.get("features", ""))
    if platform.machine() == "arm64" and "NEON" not in found:
        found.append("NEON")
    yield Finding("machine", "features", ", ".join(found) or "none of those that kernels use is known")


def _memory(root: Path) -> Iterator[Finding]:
    limit, free = memory_limit(root), available_memory(root)
    shown = f"{size(limit)} may be used, {size(free)} of it free now"
    if limit < _LEAST_MEMORY:
        remedy = "torch alone needs more; raise the limit (docker run --memory 2g)"
        yield Finding("machine", "memory", shown, "broken", remedy)
    else:
        yield Finding("machine", "memory", shown)


def products_finding(torch_version: str) -> Finding:
    """Return which library computes matrix products of many rows, and the rates it was chosen by."""
    try:
        forced = forced_choice()
    except SpecError as error:
        return Finding("machine", "products", str(error), "broken", error.remedy)
    choice = forced or kept_choice(torch_version)
    if choice is None:
        return Finding("machine", "products", "not measured yet: what first trains here measures them")
    library = "oneDNN" if choice.library == "onednn" else "PyTorch's BLAS"
    rates = ", ".join(f"{_LIBRARIES.get(name, name)} {rate:.0f}" for name, rate in choice.gflops.items())
    how = f"{VARIABLE} is set" if forced else f"GFLOP/s: {rates}"
    precision = "bfloat16" if choice.bfloat16 else "float32"
    return Finding("machine", "products", f'{library} ({how}); precision = "auto" trains in {precision}')
