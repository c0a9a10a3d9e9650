"""The optimizer of a decoder's parameters, its state by parameter name, and gradient clipping.

Weight decay applies to matrices (every parameter of two or more dimensions that is no bias: projections, experts,
embedding, router) and not to norms and biases. The papers give 0.1 and do not say which tensors; this is customary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fathom.checkpoint.names import current_layout
from fathom.errors import CheckpointError, SpecError
from fathom.parallel.parameters import local
from fathom.spec.train import AdamWSpec
from fathom.train.muon import MuonAdamW
from fathom.train.narrow_adamw import NarrowAdamW

_FUSED = ("cpu", "cuda", "mps")
_ADAMW_FIELDS = ("step", "exp_avg", "exp_avg_sq")
_MUON_FIELDS = ("momentum_buffer",)
_NOT_HIDDEN = ("embed_tokens.", "lm_head.", "vision.")
_ROUTER = (".gate.weight", ".gate.noise_weight")


def make_optimizer(model: nn.Module, spec: AdamWSpec) -> torch.optim.AdamW | MuonAdamW:
    """AdamW with decay on matrices only, fused into one pass over memory where the device allows.

    With ``spec.muon`` the matrices of hidden layers are Muon's, see ``MuonAdamW``; moments in bfloat16 are never fused.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = {name for name, p in named if p.dim() >= 2 and not name.endswith("bias")}
    hidden = {name for name in matrices if _is_hidden(name)} if spec.muon is not None else set()
    groups: dict[object, dict[str, Any]] = {}
    for name, parameter in named:
        if name not in hidden:
            # one operator takes DTensors of one mesh only
            mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
            decay = spec.weight_decay if name in matrices else 0.0
            group = groups.setdefault((name in matrices, mesh), {"params": [], "weight_decay": decay})
            group["params"].append(parameter)
    others = sorted(groups.values(), key=lambda group: -float(group["weight_decay"]))
    betas = (spec.beta1, spec.beta2)
    if spec.muon is not None and not (others and hidden):
        raise SpecError("optimizer.muon", "finds no matrices of hidden layers beside others to train", "leave it out")
    adamw: torch.optim.AdamW
    if spec.state_dtype == "bfloat16":
        adamw = NarrowAdamW(others, lr=spec.lr, betas=betas, eps=spec.eps)
    else:
        fused = all(parameter.device.type in _FUSED for _, parameter in named)
        adamw = torch.optim.AdamW(others, lr=spec.lr, betas=betas, eps=spec.eps, fused=fused)
    if spec.muon is None:
        return adamw
    return MuonAdamW([p for name, p in named if name in hidden], adamw, spec, spec.muon)


def _is_hidden(name: str) -> bool:
    """Whether a matrix belongs to a hidden layer and is no router."""
    return not any(part in name for part in _NOT_HIDDEN) and not name.endswith(_ROUTER)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use ``rate`` for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, sharded ones too, a plain scalar; not finite as soon as one is not."""
    norm: Tensor = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clip_gradients(parameters: Iterable[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale all gradients in place so that their common norm, ``norm`` now, is at most ``max_norm``."""
    grads = [local(p.grad) for p in parameters if p.grad is not None]
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    torch._foreach_mul_(grads, factor.to(grads[0].device))


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as ``PARAMETER/exp_avg``, ``/exp_avg_sq`` and ``/step``, or ``/momentum_buffer`` of Muon.

    A parameter that never had a gradient has none.
    """
    return {
        f"{name}/{field}": value
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for field, value in optimizer.state[parameter].items()
    }


def empty_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, names: Collection[str]
) -> dict[str, Tensor]:
    """Make the optimizer's state of a sharded model, to be filled: those of ``names`` that are of its parameters."""
    fields: dict[str, list[str]] = {}
    for name in names:
        owner, _, field = name.rpartition("/")
        fields.setdefault(owner, []).append(field)
    for name, parameter in model.named_parameters():
        if name in fields:
            optimizer.state[parameter] = {
                field: torch.zeros((), device=parameter.device) if field == "step" else torch.zeros_like(parameter)
                for field in fields[name]
            }
    return optimizer_tensors(model, optimizer)


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` returned, as copies on each parameter's device and in the optimizer's dtype.

    Raises:
        CheckpointError: a tensor is missing, belongs to no parameter, or has another shape.
    """
    tensors = {name: current_layout(name, tensor) for name, tensor in tensors.items()}
    parameters = dict(model.named_parameters())
    by_muon = {id(p) for group in optimizer.param_groups if group.get("muon") for p in group["params"]}
    fields = {name: _MUON_FIELDS if id(p) in by_muon else _ADAMW_FIELDS for name, p in parameters.items()}
    owners = {name.rpartition("/")[0] for name in tensors}
    problems = [f"{owner} is no parameter of the model" for owner in sorted(owners - set(parameters))]
    for owner in sorted(owners & set(parameters)):
        for field in fields[owner]:
            tensor, shape = tensors.get(f"{owner}/{field}"), parameters[owner].shape if field != "step" else ()
            if tensor is None:
                problems.append(f"{owner}/{field} is missing")
            elif tensor.shape != shape:
                problems.append(f"{owner}/{field} has shape {tuple(tensor.shape)} instead of {tuple(shape)}")
    if problems:
        raise CheckpointError(f"optimizer state: {'; '.join(problems)}; use the checkpoint of this very model")
    fused = {id(p) for group in optimizer.param_groups if group["fused"] for p in group["params"]}
    narrow = isinstance(optimizer, NarrowAdamW) or (isinstance(optimizer, MuonAdamW) and optimizer.is_narrow)
    for owner in owners:
        parameter = parameters[owner]
        dtype = torch.bfloat16 if narrow else parameter.dtype
        step_device = parameter.device if id(parameter) in fused else torch.device("cpu")
        optimizer.state[parameter] = {
            field: tensors[f"{owner}/{field}"].to(step_device, copy=True)
            if field == "step"
            else tensors[f"{owner}/{field}"].to(parameter.device, dtype, copy=True)
            for field in fields[owner]
        }
