"""The processes of a command, as torchrun started them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from fathom.model.decoder import Decoder
from fathom.parallel.group import MeshGroup
from fathom.parallel.mesh import Mesh
from fathom.parallel.shard import shard_model
from fathom.spec.parallel import ParallelSpec

_Value = TypeVar("_Value")
_PATIENCE = timedelta(days=30)
_SPOKEN = "spoken"


class Processes:
    """All processes of a command. They do the same, but for what one of them does while the others wait."""

    def __init__(self, device: torch.device) -> None:
        store, rank, size = next(rendezvous("env://"))
        self._store = PrefixStore("fathom", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(backend, store=self._store, rank=rank, world_size=size)
        self.rank: int = rank
        self.size: int = size
        self.device = device
        self._waiting = dist.new_group(backend="gloo", timeout=_PATIENCE)

    @property
    def leads(self) -> bool:
        """Whether this process does what one of them does: it writes files and speaks."""
        return self.rank == 0

    def broadcast(self, value: _Value) -> _Value:
        """Return the leading process's value, however long it takes to come."""
        held: list[Any] = [value]
        dist.broadcast_object_list(held, src=0, group=self._waiting)
        first: _Value = held[0]
        return first

    def shard(self, model: Decoder, plan: ParallelSpec) -> MeshGroup:
        """Shard a model, which every process holds, by a plan; return the group that trains it.

        Raises:
            SpecError: the plan does not fit the model or the number of processes.
        """
        mesh = Mesh.make(plan.checked(self.size, model.spec), self.device)
        return MeshGroup(mesh, shard_model(model, mesh))

    def may_speak(self) -> bool:
        """Whether this process is the first that asks: what ends all is said by one."""
        asked: int = self._store.add(_SPOKEN, 1)
        return asked == 1

    def leave(self) -> None:
        """End; nothing is waited for."""
        if dist.is_initialized():
            dist.destroy_process_group()
