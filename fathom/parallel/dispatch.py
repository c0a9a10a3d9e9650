"""Expert parallelism: tokens travel to the processes that hold their experts, and the experts' sums travel back.

X processes, Y rows sent, Z rows received.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fathom.model.moe.dispatch import ExpertAssignment
from fathom.parallel.collectives import exchange, exchange_with_gradient

_DROPPED = -1


@dataclass(frozen=True, slots=True)
class Sent:
    """Which tokens went where: ``tokens_Y`` in the order of processes, ``sent`` to and ``received`` from each."""

    tokens_Y: Tensor
    tokens: int
    sent: list[int]
    received: list[int]


class AllToAllDispatcher:
    """Sends each token once to every process that holds one of its experts (V2 §2.2.2: at most M of them)."""

    def __init__(self, group: dist.ProcessGroup, num_experts: int) -> None:
        self._group = group
        self._processes = dist.get_world_size(group)
        self._held = num_experts // self._processes
        self._first = dist.get_rank(group) * self._held

    def dispatch(self, x_ND: Tensor, assignment: ExpertAssignment) -> tuple[Tensor, ExpertAssignment, Sent]:
        """Return (Z, D) rows for the experts held here, those of process 0 first, and their assignment."""
        indices_NK = assignment.indices_NK
        if assignment.kept_NK is not None:
            indices_NK = indices_NK.masked_fill(~assignment.kept_NK, _DROPPED)
        wanted_XN = self._wanted(indices_NK)
        counts_X = wanted_XN.sum(1)
        received_X = torch.empty_like(counts_X)
        dist.all_to_all_single(received_X, counts_X, group=self._group)
        sent, received = torch.stack((counts_X, received_X)).tolist()
        tokens_Y = wanted_XN.nonzero()[:, 1]
        state = Sent(tokens_Y, x_ND.shape[0], sent, received)
        rows_ZD = exchange_with_gradient(x_ND[tokens_Y], sent, received, self._group)
        weights_ZK = exchange_with_gradient(assignment.weights_NK[tokens_Y], sent, received, self._group)
        own_ZK = exchange(indices_NK[tokens_Y], sent, received, self._group) - self._first
        kept_ZK = (own_ZK >= 0) & (own_ZK < self._held)
        return rows_ZD, ExpertAssignment(own_ZK.masked_fill(~kept_ZK, 0), weights_ZK, kept_ZK), state

    def combine(self, y_ZD: Tensor, state: Sent) -> Tensor:
        """Return (N, D): for every token the sum of what processes made of it, in the order of ``dispatch``."""
        y_YD = exchange_with_gradient(y_ZD, state.received, state.sent, self._group)
        return y_YD.new_zeros(state.tokens, y_YD.shape[1]).index_add(0, state.tokens_Y, y_YD)

    def _wanted(self, indices_NK: Tensor) -> Tensor:
        """Whether each process holds an expert of each token, bool (X, N)."""
        owner_NK = torch.where(indices_NK == _DROPPED, self._processes, indices_NK // self._held)
        wanted_NX = torch.zeros(
            len(indices_NK), self._processes + 1, dtype=torch.bool, device=indices_NK.device
        ).scatter_(1, owner_NK, True)
        return wanted_NX[:, :-1].t().contiguous()
