"""Muon (Jordan 2024) for the matrices of hidden layers, with AdamW for everything else.

X rows, Y columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.spec.train import AdamWSpec, MuonSpec
from fathom.train.narrow_adamw import STATE_DTYPES

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_LEAST_NORM = 1e-7


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer of two kinds of parameters, each with its state: Muon's ``matrices``, and those of ``adamw``.

    A parameter of more than two dimensions is a stack of matrices, such as an expert's or gate and up: each is
    orthogonalised by itself. The update is that of ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"``
    (Liu et al. 2025), so that learning rate and weight decay mean what they do for AdamW.
    """

    def __init__(self, matrices: Sequence[Tensor], adamw: torch.optim.AdamW, spec: AdamWSpec, muon: MuonSpec) -> None:
        own = {"params": list(matrices), "muon": True, "lr": spec.lr, "weight_decay": spec.weight_decay, "fused": False}
        others = [{**group, "muon": False} for group in adamw.param_groups]
        super().__init__([own, *others], adamw.defaults)
        self._spec, self._adamw = muon, adamw
        self._state_dtype = STATE_DTYPES[spec.state_dtype]
        adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
        adamw.state = self.state

    @property
    def is_narrow(self) -> bool:
        """Whether running means are kept in bfloat16."""
        return self._state_dtype == torch.bfloat16

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step with the gradients there are."""
        self._adamw.step()
        for group in self.param_groups:
            if group["muon"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._update(parameter, parameter.grad, group["lr"], group["weight_decay"])

    def _update(self, parameter: Tensor, grad: Tensor, rate: float, weight_decay: float) -> None:
        momentum, state = self._spec.momentum, self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter, dtype=self._state_dtype)
        kept = state["momentum_buffer"]
        mean = kept.to(grad.dtype).lerp_(grad, 1 - momentum)  # in place where the dtypes are one
        if mean is not kept:
            kept.copy_(mean)
        update = orthogonalised(grad.lerp(mean, momentum), self._spec.ns_steps)
        rows, columns = parameter.shape[-2:]
        parameter.mul_(1 - rate * weight_decay)
        parameter.add_(update, alpha=-rate * 0.2 * math.sqrt(max(rows, columns)))


def orthogonalised(matrices: Tensor, steps: int) -> Tensor:
    """Bring the singular values of (..., X, Y) near 1, by a quintic Newton-Schulz iteration in bfloat16.

    They end between about 0.7 and 1.2, as in Jordan's post, whose coefficients these are.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=_LEAST_NORM)
    shape = x.shape
    x = x if x.dim() == 2 else x.flatten(0, -3)
    add_product = torch.addmm if x.dim() == 2 else torch.baddbmm
    for _ in range(steps):
        gram = x @ x.mT
        x = add_product(x, add_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.view(shape)
    return x.mT if tall else x
