"""Loading and rewriting a checkpoint takes its largest tensor of ours in memory and little more, whatever its size."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fathom.checkpoint.hf import write_hf
from fathom.model.build import parameter_shapes
from fathom.spec import GroupedQueryAttention, MixtureOfExperts, ModelSpec

SPEC = ModelSpec(
    name="synthetic",
    family="deepseek",
    vocab_size=16384,
    hidden_size=1024,
    num_hidden_layers=5,
    attention=GroupedQueryAttention(num_heads=8, num_kv_heads=8, head_dim=128),
    moe=MixtureOfExperts(n_routed_experts=64, num_experts_per_tok=4, moe_intermediate_size=640, n_shared_experts=1),
    max_position_embeddings=64,
)
MIB = 2**20
SLACK = 192 * MIB
"""What may be resident beyond the destination and one tensor of ours: a published tensor, headers, the allocator's."""

MEASURE = """
import json, sys
from pathlib import Path
import torch
from fathom.checkpoint.hf import HFCheckpoint, write_hf
from fathom.checkpoint.weights import load_weights
from fathom.model import build

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

torch.ones(512, 512) @ torch.ones(512, 512)
source = HFCheckpoint.open(Path(sys.argv[1]))
what, destination = sys.argv[2], 0
before = status("VmRSS")
if what == "load":
    model = build(source.spec, device=torch.device("cpu"), dtype=torch.bfloat16, seed=None)
    destination = sum(tensor.nbytes for tensor in model.state_dict().values())
    load_weights(model, source)
else:
    dtype = {"rewrite": None, "fp8": "fp8", "float16": torch.float16}[what]
    write_hf(Path(sys.argv[3]), source, carried=source.carried, dtype=dtype, max_shard_bytes=300_000_000)
print(json.dumps({"beyond": status("VmHWM") - before - destination, "destination": destination}))
"""


@dataclass(frozen=True)
class Cheap:
    """Weights whose every tensor repeats one number of its own."""

    spec: ModelSpec

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        return dict.fromkeys(parameter_shapes(self.spec), torch.bfloat16)

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        for index, (name, shape) in enumerate(parameter_shapes(self.spec).items()):
            yield name, torch.full(shape, (index + 1) / 64, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("synthetic") / "model"
    write_hf(directory, Cheap(SPEC), max_shard_bytes=300_000_000)
    assert sum(path.stat().st_size for path in directory.iterdir()) > 2**30
    yield directory
    for path in directory.iterdir():
        path.unlink()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measured through /proc")
@pytest.mark.parametrize("what", ["load", "rewrite", "fp8", "float16"])
def test_peak_memory_is_the_destination_and_one_tensor(what: str, published: Path, tmp_path: Path) -> None:
    largest = max(math.prod(shape) * 2 for shape in parameter_shapes(SPEC).values())
    command = [sys.executable, "-c", MEASURE, str(published), what, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout)
    print(what, {name: round(value / MIB) for name, value in measured.items()}, "MiB; largest", round(largest / MIB))
    assert measured["beyond"] < largest + SLACK
    assert SLACK + largest < 2**30, "holding the whole checkpoint must fail"
    for path in (tmp_path / "out").glob("*"):
        path.unlink()
