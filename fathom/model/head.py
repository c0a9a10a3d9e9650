"""The output head: hidden states to logits over the vocabulary, and the losses that never hold all logits at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HeadFunction = Callable[[Any, Tensor], Any]
"""A function of hidden states and the head's weight (V, D), such as a chunked cross-entropy.

It returns a tensor or a tuple of tensors: hooks that gather a sharded weight again for the backward pass find its
outputs only there.
"""


class OutputHead(nn.Module):
    """A projection (V, D) without bias; with ``embedding`` it has no parameter and projects by the embedding's weight.

    Training reads the weight only in calls of this module, so that hooks around it (FSDP gathers the weight before and
    frees it after) see every use.
    """

    weight: nn.Parameter | None

    def __init__(self, hidden_size: int, vocab_size: int, embedding: nn.Embedding | None = None) -> None:
        super().__init__()
        parameter = None if embedding is not None else nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.register_parameter("weight", parameter)
        object.__setattr__(self, "_embedding", embedding)  # not a submodule: the state has its weight once

    @property
    def weight_VD(self) -> Tensor:
        """The projection as it is now, for initialising and converting; training calls the module instead."""
        if self.weight is not None:
            return self.weight
        embedding: nn.Embedding = self._embedding  # type: ignore[assignment]
        return embedding.weight

    def forward(self, hidden: Any, function: HeadFunction = F.linear) -> Any:
        """Return ``function`` of hidden states (..., D), or a tuple of them, and the weight; the logits by default."""
        return function(hidden, self.weight_VD)
