"""Trains a case in a directory on one plan, from its latest checkpoint; run under torchrun, or alone without a plan."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from fathom.checkpoint import store
from fathom.model.build import build
from fathom.parallel.group import MeshGroup
from fathom.parallel.mesh import Mesh
from fathom.parallel.shard import shard_model
from fathom.spec.parallel import ParallelSpec
from fathom.spec.train import Checkpointing
from fathom.train import Trainer
from fathom.train.group import ALONE, Group
from fathom.train.parts import RankLoader
from tests.parallel.cases import CASES
from tests.train.conftest import FakeLoader


def train(case_name: str, directory: Path, steps: int, fields: dict[str, int] | None) -> None:
    """Train until so many steps are done in all."""
    case, model, group = CASES[case_name], build(CASES[case_name].model), ALONE
    if fields is not None:
        group, model = sharded(case_name, fields)
    batch = case.train.batch.size
    spec = replace(
        case.train,
        total_tokens=steps * batch * case.train.sequence_length,
        checkpoint=Checkpointing(every_steps=2, every_seconds=None),
        log_every_steps=1,
    )
    loader = RankLoader(FakeLoader(), group)
    trainer = Trainer(model, spec, loader, directory, bytes_per_token={"stories": 4.0, "code": 2.0}, group=group)
    resume = store.latest(directory / store.CHECKPOINTS) is not None
    trainer.run(resume=resume, allow_changes=True)


def sharded(case_name: str, fields: dict[str, int]) -> tuple[Group, torch.nn.Module]:
    """Build the case's model on a plan."""
    dist.init_process_group("gloo")
    plan = ParallelSpec(**fields).checked(dist.get_world_size(), CASES[case_name].model)
    mesh, model = Mesh.make(plan, torch.device("cpu")), build(CASES[case_name].model)
    return MeshGroup(mesh, shard_model(model, mesh)), model


def main() -> None:
    torch.set_num_threads(1)
    case, directory, steps, fields = sys.argv[1:]
    train(case, Path(directory), int(steps), json.loads(fields))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
