"""Twenty steps of a small model with everything training touches, on one plan after another; run under torchrun.

Rank 0 writes what each plan computed, in their order, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fathom.model.build import build
from fathom.parallel.group import MeshGroup
from fathom.parallel.mesh import Mesh
from fathom.parallel.shard import shard_model
from fathom.spec.parallel import ParallelSpec
from fathom.train.group import Group
from fathom.train.micro_batch import batch_size, split
from fathom.train.optimizer import make_optimizer
from fathom.train.parts import part_of
from fathom.train.pipeline import make_runner
from tests.parallel.cases import CASES, Case

STEPS = 20


def run(case: Case, group: Group, model: Any) -> dict[str, list[float]]:
    """Train ``model`` on the case's batches; return what each step computed over the whole batch."""
    runner = make_runner(model, make_optimizer(model, case.train.optimizer), case.train, group=group, sources=2)
    found: dict[str, list[float]] = {"objective": [], "balance": [], "mtp": [], "norm": [], "load": []}
    for number in range(1, STEPS + 1):
        batch = part_of(case.batch(number), group.rank, group.size)
        sequences, _ = batch_size(batch, group)
        micros = split(batch, *case.train.micro_batch, runner.device, group)
        gradients = runner.accumulate(micros, sequences, number, observe=True)
        runner.apply(gradients, 0.01)
        assert gradients.counts_LE is not None
        weights = torch.arange(1.0, gradients.counts_LE.numel() + 1).view_as(gradients.counts_LE)
        for name in ("objective", "balance", "mtp"):
            found[name].append(getattr(gradients, name))
        found["norm"].append(gradients.norm_value)
        found["load"].append(float((gradients.counts_LE * weights).sum()))
    return found


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    wanted, output = json.loads(sys.argv[1]), Path(sys.argv[2])
    results = []
    for case_name, fields in wanted:
        case = CASES[case_name]
        plan = ParallelSpec(**fields).checked(dist.get_world_size(), case.model)
        mesh = Mesh.make(plan, torch.device("cpu"))
        model = build(case.model).train()
        pipeline = shard_model(model, mesh)
        results.append(run(case, MeshGroup(mesh, pipeline), model))
    if dist.get_rank() == 0:
        output.write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
