"""A linear layer whose product is chosen in ``kernels``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fathom import kernels
from fathom.model.adapters.low_rank import LowRankUpdate


class Linear(nn.Linear):
    """x w^T + b, and what ``lora`` adds where the layer is adapted."""

    lora: LowRankUpdate | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lora = None

    @property
    def is_plain(self) -> bool:
        """Whether a call is a product and nothing else: no bias, no adapter, and no hook that waits for the call."""
        hooks = (self._forward_hooks, self._forward_pre_hooks, self._backward_hooks, self._backward_pre_hooks)
        return type(self) is Linear and self.lora is None and self.bias is None and not any(hooks)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        y = kernels.linear(x, self.weight, self.bias)
        return y if self.lora is None else y + self.lora(x)
