"""Loading into tensors that several processes hold parts of, from a checkpoint of any number of processes."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load as load_planned

from fathom.checkpoint import store
from fathom.checkpoint.sharded.agreement import agree, one_error
from fathom.checkpoint.sharded.pieces import Named, key_of
from fathom.checkpoint.sharded.planning import PieceLoadPlanner
from fathom.checkpoint.sharded.storage import SafetensorsReader


def open_checkpoint(directory: Path, group: dist.ProcessGroup | None = None) -> store.Checkpoint:
    """Open a checkpoint on every rank of ``group``; each compares the checksums of its share of the files.

    Raises:
        CheckpointError: a rank found it missing, cut short or changed; all ranks raise it.
    """
    rank, ranks = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))

    def work() -> store.Checkpoint:
        opened = store.Checkpoint.open(directory, verify=False)
        entries = opened.manifest["files"]
        by_size = sorted(entries, key=lambda name: (-entries[name]["bytes"], name))
        for name in by_size[rank::ranks]:
            opened.verify(name)
        return opened

    return agree(group, work)


def load_sharded(
    opened: store.Checkpoint, tensors: Named, group: dist.ProcessGroup | None = None, *, partial: bool = False
) -> None:
    """Fill tensors in place; every rank of ``group`` calls this, and reads the bytes of its own parts alone.

    Args:
        opened: a checkpoint, saved by any number of processes.
        tensors: file stem -> name -> tensor, plain or distributed over any mesh, on any device; each rank gives its
            own. Values are converted to a tensor's type.
        group: its collectives must work on the CPU (gloo). Without one, this process loads alone.
        partial: whether the checkpoint may hold more tensors of a stem than all ranks together give.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape, or a file is damaged; all ranks raise
            the same error, which names the rank. Tensors may have been filled in part.
    """
    wanted = {key_of(stem, name): tensor for stem, named in tensors.items() for name, tensor in named.items()}
    planner = PieceLoadPlanner(opened.directory, partial=partial)
    reader = SafetensorsReader(opened, tensors)
    if group is not None:
        with one_error():
            load_planned(dict(wanted), storage_reader=reader, planner=planner, process_group=group)
        return
    metadata = reader.read_metadata()
    planner.set_up_planner(wanted, metadata, True)
    reader.set_up_storage_reader(metadata, True)
    (plan,) = planner.create_global_plan([planner.create_local_plan()])
    reader.read_data(plan, planner)
