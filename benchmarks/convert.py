"""Conversions of a BF16 mixture of experts between forms, against copying its file and forcing the copy to disk.

Speed comes from alternating rounds in one process; peak memory from a process of each conversion alone, which also
says how much was there before (interpreter and libraries).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import peers, timing
from benchmarks.train_step import peak_mib
from fathom.checkpoint.hf import write_hf
from fathom.inference.conversion import Conversion
from fathom.inference.loading import open_source
from fathom.model.build import parameter_shapes
from fathom.spec import LatentAttention, MixtureOfExperts, ModelSpec, RopeSpec

TARGETS = {"hf": ("hf", None), "gguf": ("gguf", "BF16"), "fathom": ("fathom", None), "gguf-q8_0": ("gguf", "Q8_0")}
SPEC = ModelSpec(
    name="synthetic",
    family="deepseek_v2",
    vocab_size=32_000,
    hidden_size=1024,
    num_hidden_layers=2,
    attention=LatentAttention(
        num_heads=8, q_lora_rank=512, kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=64, v_head_dim=64
    ),
    max_position_embeddings=4096,
    intermediate_size=4096,
    first_k_dense_replace=1,
    moe=MixtureOfExperts(n_routed_experts=32, num_experts_per_tok=4, moe_intermediate_size=512, n_shared_experts=1),
    rope=RopeSpec(layout="interleaved"),
)


@dataclass(frozen=True)
class RandomWeights:
    """Weights that are drawn as they are asked for."""

    spec: ModelSpec

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        return dict.fromkeys(parameter_shapes(self.spec), torch.bfloat16)

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for name, shape in parameter_shapes(self.spec).items():
            yield name, torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)


def sized(mib: int) -> ModelSpec:
    """Return the shape with as many layers as fill ``mib`` MiB in bfloat16."""
    per_layer = sum(math.prod(s) for n, s in parameter_shapes(SPEC).items() if n.startswith("layers.1."))
    base = sum(math.prod(s) for n, s in parameter_shapes(SPEC).items() if not n.startswith("layers.1."))
    return replace(SPEC, num_hidden_layers=max(2, 1 + round((mib * 2**20 / 2 - base) / per_layer)))


def copy(source: Path, out: Path) -> None:
    out.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, out / file.name)
        with (out / file.name).open("rb") as copied:
            os.fsync(copied.fileno())


def convert(source: Path, out: Path, target: str) -> None:
    form, dtype = TARGETS[target]
    Conversion.prepare(open_source(source), out, form, dtype=dtype).run()


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def measured(folder: Path, count: int) -> dict[str, list[float]]:
    source, out = folder / "source", folder / "out"

    def contestant(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            work()
            remove(out)

        return run

    contestants = {"copy": contestant(lambda: copy(source, out))}
    for target in TARGETS:
        contestants[target] = contestant(lambda target=target: convert(source, out, target))  # type: ignore[misc]
    return timing.interleave(contestants, rounds=count)


def alone(source: Path, target: str) -> None:
    """Convert or copy once and print memory and processor time; run in a process of its own."""
    before, began = peak_mib(), time.process_time()
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        out = Path(folder) / "out"
        copy(source, out) if target == "copy" else convert(source, out, target)
        busy = time.process_time() - began
    print(json.dumps({"peak_mib": round(peak_mib()), "before_mib": round(before), "cpu_seconds": round(busy, 2)}))


def each_alone(source: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for target in ("copy", *TARGETS):
        command = [sys.executable, "-m", "benchmarks.convert", "--alone", target, "--source", str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[target] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files are written; a temporary one if left out")
    parser.add_argument("--alone", choices=["copy", *TARGETS])
    parser.add_argument("--source", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    if a.alone:
        return alone(a.source, a.alone)
    spec = sized(a.mib)
    with tempfile.TemporaryDirectory(dir=a.folder) as name:
        folder = Path(name)
        write_hf(folder / "source", RandomWeights(spec))
        size = sum(file.stat().st_size for file in (folder / "source").iterdir())
        found = each_alone(folder / "source")
        seconds = measured(folder, a.rounds)
    largest = max(math.prod(shape) for shape in parameter_shapes(spec).values()) * 2
    result: dict[str, object] = {
        "mib": round(size / 2**20),
        "layers": spec.num_hidden_layers,
        "largest_tensor_mib": round(largest / 2**20),
        "copy_mib_per_second": round(size / 2**20 / statistics.median(seconds["copy"])),
    }
    result |= timing.summary(seconds, units=size / 2**20, peer="copy") | {"alone": found}
    return peers.write(f"convert-{a.mib}", result, a.out)


if __name__ == "__main__":
    main()
