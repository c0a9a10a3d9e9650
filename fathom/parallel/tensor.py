"""Tensor parallelism: heads of attention and widths of feed-forward layers over processes (Megatron's f and g).

What is sharded is a table beside the model. Norms, routers and the projections to latents are whole on each process,
which all compute the same from the same input; activations are whole between the sharded parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard

from fathom.model.attention.gqa import GQA
from fathom.model.attention.mla import MLA
from fathom.model.decoder import Decoder
from fathom.model.ffn import SwiGLU
from fathom.model.moe import Experts
from fathom.parallel.collectives import all_sum, part_of_value, sum_gradients
from fathom.parallel.parameters import local, shard_parameter
from fathom.parallel.substitute import substitute_weights

Dims = Mapping[str, int]
"""Parameters of a module by name, and the dimension along which each is sharded."""

SHARDED: Mapping[type[nn.Module], Dims] = {
    MLA: {"q_proj.weight": 0, "q_b_proj.weight": 0, "kv_b_proj.weight": 0, "o_proj.weight": 1},
    GQA: {
        **{f"{name}_proj.{kind}": 0 for name in "qkv" for kind in ("weight", "bias")},
        "o_proj.weight": 1,
    },
    SwiGLU: {"gate_up_proj.weight": 1, "gate_up_proj.bias": 1, "down_proj.weight": 1},
}
EXPERT_DIMS: Dims = {"gate_up_proj": 2, "down_proj": 2}
"""The width of each expert in its stacked parameters."""


def shard_tensors(model: Decoder, mesh: DeviceMesh) -> None:
    """Divide attention and dense and shared feed-forward layers, and have them add up what the processes compute."""
    group = mesh.get_group()
    for module in model.modules():
        dims = SHARDED.get(type(module))
        if dims is None:
            continue
        for name, dim in dims.items():
            _shard(module, name, dim, mesh)
        if isinstance(module, MLA):
            _sum_latents(module, group)
        else:
            module.register_forward_pre_hook(_first_input(group))
        module.register_forward_hook(_summed(group))


def sum_experts(experts: Experts, group: ProcessGroup) -> None:
    """Have routed experts, of which each process holds a part of the width, add up what the processes compute."""

    def enter(module: nn.Module, args: Any) -> Any:
        x_ND, assignment, *rest = args
        weights_NK = sum_gradients(assignment.weights_NK, group)
        return sum_gradients(x_ND, group), replace(assignment, weights_NK=weights_NK), *rest

    experts.register_forward_pre_hook(enter)
    experts.register_forward_hook(_summed(group))


def _shard(module: nn.Module, path: str, dim: int, mesh: DeviceMesh) -> None:
    """Replace one parameter by its part, as a DTensor of the mesh, and have its module compute with that part."""
    owner_name, _, name = path.rpartition(".")
    owner = getattr(module, owner_name, None)
    parameter = None if owner is None else getattr(owner, name)
    if owner is None or parameter is None:
        return
    shard_parameter(owner, name, mesh, [Shard(dim)])
    if name == "weight":
        # a bias behind the sum is whole on each process, and each adds a part of it
        whole = "bias" if owner_name in ("o_proj", "down_proj") else ""
        substitute_weights(
            owner, lambda name, value: part_of_value(value, mesh.size()) if name == whole else local(value)
        )


def _sum_latents(module: MLA, group: ProcessGroup) -> None:
    """Sum the gradients that heads give to what all heads read: queries' input, latents and the rotary key.

    The norm of the latents lies behind the place where they are summed, so that its weight's gradient is summed too.
    """
    query: nn.Module = module.q_proj if module.shape.q_lora_rank is None else module.q_b_proj
    query.register_forward_pre_hook(_first_input(group))
    module.kv_a_proj_with_mqa.register_forward_hook(lambda module, args, output: sum_gradients(output, group))
    substitute_weights(module.kv_a_layernorm, lambda name, weight: sum_gradients(weight, group))


def _first_input(group: ProcessGroup) -> Callable[[nn.Module, Any], Any]:
    return lambda module, args: (sum_gradients(args[0], group), *args[1:])


def _summed(group: ProcessGroup) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda module, args, output: all_sum(output, group)
