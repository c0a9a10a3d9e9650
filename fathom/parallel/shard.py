"""A model sharded on a mesh: tensor and expert parallelism, then FSDP around layers, experts and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import Placement

from fathom.errors import SpecError
from fathom.model.decoder import Decoder
from fathom.model.head import OutputHead
from fathom.model.moe import Experts, MoELayer
from fathom.parallel.dispatch import AllToAllDispatcher
from fathom.parallel.mesh import Mesh
from fathom.parallel.parameters import shard_parameter
from fathom.parallel.pipeline import Pipeline, cut, doubled_parameters, own_parts
from fathom.parallel.substitute import local_weight, substitute_weights
from fathom.parallel.tensor import EXPERT_DIMS, shard_tensors, sum_experts


def shard_model(model: Decoder, mesh: Mesh) -> Pipeline | None:
    """Shard a model in place; every process holds the same model before, or the same shapes on the meta device.

    Gradients are summed over processes, not averaged: losses are parts of the whole batch's. Returns the stages of
    this process where the plan has a pipeline.
    """
    plan = mesh.plan
    if model.adaptation is not None:
        raise SpecError("parallel", "an adapter is trained by one process", "leave [parallel] out, or the adapter")
    stages = cut(model, own_parts(model, mesh)) if plan.pipeline > 1 else []
    if plan.tensor > 1:
        shard_tensors(model, mesh.tensor)
    for layer in moe_layers(model):
        _shard_experts(layer.experts, mesh)
    roots: list[nn.Module] = [*stages] or [model]
    for module, submesh in [*_units(model, mesh), *((root, mesh.parameters) for root in roots)]:
        # a root's own parameters are read again outside its forward pass, by the head's losses
        reshard = plan.sharding == "fsdp" and plan.pipeline == 1 and module is not model
        fully_shard(
            module,
            mesh=submesh,
            reshard_after_forward=reshard,
            shard_placement_fn=_placement(submesh),
            ignored_params=doubled_parameters(stages),
        )
    for unit in {unit for root in roots for unit in fsdp_modules(root)}:
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    return Pipeline(stages, mesh, model.spec) if stages else None


def moe_layers(model: nn.Module) -> Iterator[MoELayer]:
    """Yield the mixtures of experts of a model."""
    return (module for module in model.modules() if isinstance(module, MoELayer))


def fsdp_modules(model: nn.Module) -> Iterator[FSDPModule]:
    """Yield the modules that FSDP gathers and reduces as one."""
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def begin_micro_batch(model: nn.Module, mesh: Mesh, *, last: bool) -> None:
    """Prepare a micro-batch: under ZeRO-1 gradients are added up, and parameters freed, after the last one only."""
    if mesh.plan.sharding == "fsdp" or mesh.plan.pipeline > 1:
        return
    for module in fsdp_modules(model):
        module.set_requires_gradient_sync(last, recurse=False)
        module.set_reshard_after_backward(last, recurse=False)
        module.set_is_last_backward(last)


def _units(model: Decoder, mesh: Mesh) -> Iterator[tuple[nn.Module, DeviceMesh]]:
    """Yield what FSDP treats as one within a model, inner modules first, and where each is sharded."""
    for layer in [*model.layers, *model.mtp]:
        if next(layer.parameters(), None) is None:
            continue
        for module in layer.modules():
            if isinstance(module, Experts) and mesh.plan.expert > 1:
                yield module, mesh.expert_parameters
        yield layer, mesh.parameters
    if isinstance(model.lm_head, OutputHead) and not model.spec.tie_word_embeddings:
        yield model.lm_head, mesh.parameters


def _shard_experts(experts: Experts, mesh: Mesh) -> None:
    """Leave a process its experts, and of these its part of the width."""
    axes = {"expert": mesh.expert, "tensor": mesh.tensor if mesh.plan.tensor > 1 else None}
    divided = {name: axis for name, axis in axes.items() if axis is not None}
    if not divided:
        return
    count = len(experts.gate_up_proj)
    submesh = DeviceMesh._concatenate(list(divided.values())) if len(divided) > 1 else next(iter(divided.values()))
    for name, dim in EXPERT_DIMS.items():
        placements: list[Placement] = [Shard(0) if axis == "expert" else Shard(dim) for axis in divided]
        shard_parameter(experts, name, submesh, placements)
    substitute_weights(experts, local_weight)
    if mesh.plan.tensor > 1:
        sum_experts(experts, mesh.tensor.get_group())
    if mesh.expert is not None:
        experts.dispatcher = AllToAllDispatcher(mesh.expert.get_group(), count)


def _placement(mesh: DeviceMesh) -> Callable[[nn.Parameter], Shard | None]:
    """Shard along the first dimension that divides evenly, and that no other axis has divided; else along the first.

    Gate and up are two, and experts on a process may be few: along them most processes would get nothing.
    """
    degree = mesh.size(-1)

    def placement(parameter: nn.Parameter) -> Shard | None:
        shape, taken = parameter.shape, set()
        if isinstance(parameter, DTensor):
            shape = parameter.to_local().shape
            taken = {placed.dim for placed in parameter.placements if isinstance(placed, Shard)}
        fitting = [dim for dim, size in enumerate(shape) if size % degree == 0 and dim not in taken]
        return Shard(fitting[0]) if fitting else None

    return placement
