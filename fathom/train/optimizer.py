"""AdamW over a decoder's parameters, its state by parameter name, and gradient clipping.

Weight decay applies to matrices (every parameter of two or more dimensions that is no bias: projections, experts,
embedding, router) and not to norms and biases. The papers give 0.1 and do not say which tensors; this is customary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from fathom.checkpoint.names import current_layout
from fathom.errors import CheckpointError
from fathom.spec.train import AdamWSpec

_FUSED = ("cpu", "cuda", "mps")
_FIELDS = ("step", "exp_avg", "exp_avg_sq")


def make_optimizer(model: nn.Module, spec: AdamWSpec) -> torch.optim.AdamW:
    """AdamW with decay on matrices only, fused into one pass over memory where the device allows."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = {name for name, p in named if p.dim() >= 2 and not name.endswith("bias")}
    groups = [
        {"params": [p for name, p in named if name in matrices], "weight_decay": spec.weight_decay},
        {"params": [p for name, p in named if name not in matrices], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=spec.lr,
        betas=(spec.beta1, spec.beta2),
        eps=spec.eps,
        fused=all(parameter.device.type in _FUSED for _, parameter in named),
    )


def set_learning_rate(optimizer: torch.optim.AdamW, rate: float) -> None:
    """Use ``rate`` for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, sharded ones too, a plain scalar; not finite as soon as one is not."""
    norm: Tensor = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    gather: Callable[[], Tensor] | None = getattr(norm, "full_tensor", None)  # a DTensor's, of sharded gradients
    return norm if gather is None else gather()


def clip_gradients(parameters: Iterable[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale all gradients in place so that their common norm, ``norm`` now, is at most ``max_norm``."""
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """The optimizer's state as ``PARAMETER/exp_avg``, ``/exp_avg_sq`` and ``/step``.

    A parameter that never had a gradient has none.
    """
    return {
        f"{name}/{field}": optimizer.state[parameter][field]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for field in _FIELDS
    }


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` returned, as copies on each parameter's device.

    Raises:
        CheckpointError: a tensor is missing, belongs to no parameter, or has another shape.
    """
    tensors = {name: current_layout(name, tensor) for name, tensor in tensors.items()}
    parameters = dict(model.named_parameters())
    owners = {name.rpartition("/")[0] for name in tensors}
    problems = [f"{owner} is no parameter of the model" for owner in sorted(owners - set(parameters))]
    for owner in sorted(owners & set(parameters)):
        for field in _FIELDS:
            tensor, shape = tensors.get(f"{owner}/{field}"), parameters[owner].shape if field != "step" else ()
            if tensor is None:
                problems.append(f"{owner}/{field} is missing")
            elif tensor.shape != shape:
                problems.append(f"{owner}/{field} has shape {tuple(tensor.shape)} instead of {tuple(shape)}")
    if problems:
        raise CheckpointError(f"optimizer state: {'; '.join(problems)}; use the checkpoint of this very model")
    on_device = {id(p) for group in optimizer.param_groups if group["fused"] for p in group["params"]}
    for owner in owners:
        parameter = parameters[owner]
        step_device = parameter.device if id(parameter) in on_device else torch.device("cpu")
        optimizer.state[parameter] = {
            field: tensors[f"{owner}/{field}"].to(step_device if field == "step" else parameter.device, copy=True)
            for field in _FIELDS
        }
