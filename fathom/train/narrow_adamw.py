"""AdamW whose moments are kept in bfloat16, half the bytes of float32 (V3 §3.3.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

STATE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class NarrowAdamW(torch.optim.AdamW):
    """Computes each step in float32 and rounds the moments; otherwise ``torch.optim.AdamW``, with its state's names."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step with the gradients there are."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        state["step"] += 1
        steps, (beta1, beta2), rate = int(state["step"]), group["betas"], group["lr"]
        mean, square = state["exp_avg"].float(), state["exp_avg_sq"].float()
        mean.lerp_(grad.float(), 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        state["exp_avg"].copy_(mean)
        state["exp_avg_sq"].copy_(square)
        parameter.mul_(1 - rate * group["weight_decay"])
        root = square.div_(1 - beta2**steps).sqrt_().add_(group["eps"])
        parameter.addcdiv_(mean, root, value=-rate / (1 - beta1**steps))
