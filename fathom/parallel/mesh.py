"""The processes as a mesh of named axes, and the groups of them that do something together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fathom.spec.parallel import ParallelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """The axes of a plan; each is a mesh of one dimension, but ``parameters`` and ``expert_parameters``.

    ``parameters`` is where FSDP shards what is not a routed expert's: (replicate, shard), the latter with the context
    axis; ``expert_parameters`` the same for routed experts, which the expert axis has divided before. ``data`` are the
    processes that have different tokens of a batch.
    """

    plan: ParallelSpec
    device: torch.device
    parameters: DeviceMesh
    expert_parameters: DeviceMesh
    expert: DeviceMesh | None
    tensor: DeviceMesh
    context: DeviceMesh
    pipeline: DeviceMesh
    data: DeviceMesh

    @classmethod
    def make(cls, plan: ParallelSpec, device: torch.device) -> Mesh:
        """Make the mesh over all processes, in the order pipeline, replicate, shard, context, tensor.

        Consecutive ranks share tensor and expert axes, which exchange most: on a cluster they share a machine.
        """
        inner = plan.expert // plan.context if plan.expert > 1 else 1
        sizes = {
            "pipeline": plan.pipeline,
            "replicate": plan.replicate,
            "outer": plan.shard // inner,
            "inner": inner,
            "context": plan.context,
            "tensor": plan.tensor,
        }
        root = init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
        shard = root["outer", "inner", "context"]._flatten("shard")
        experts_apart = plan.expert > 1
        return cls(
            plan=plan,
            device=device,
            parameters=_pair(root["replicate"], shard),
            expert_parameters=_pair(root["replicate"], root["outer"] if experts_apart else shard),
            expert=root["inner", "context"]._flatten("expert") if experts_apart else None,
            tensor=root["tensor"],
            context=root["context"],
            pipeline=root["pipeline"],
            data=root["replicate", "outer", "inner", "context"]._flatten("data"),
        )

    @property
    def data_rank(self) -> int:
        """This process among those with different sequences."""
        return self.data.get_local_rank() // self.plan.context

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return dist.get_rank() == 0


def _pair(replicate: DeviceMesh, shard: DeviceMesh) -> DeviceMesh:
    """The mesh of hybrid sharding; the replicas' axis is left out where there is one."""
    return DeviceMesh._concatenate([replicate, shard]) if replicate.size() > 1 else shard
