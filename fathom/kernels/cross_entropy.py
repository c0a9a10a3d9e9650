"""Cross-entropy of a linear head without ever holding more than one chunk of logits.

X tokens of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.products import add_product, product
from fathom.kernels.tensors import accumulation_dtype, autocasts
from fathom.spec.targets import IGNORE_INDEX


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, chunk_tokens: int, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Cross-entropy of each token under the logits ``hidden @ weight.T``, float32 or wider; ignored tokens are 0.

    At most ``chunk_tokens`` x V logits are alive, forward or backward. The backward pass computes the logits again:
    four products of N x D x V in all. To train on the mean, ``mean_linear_cross_entropy`` needs three.
    """
    hidden_ND, weight_VD = cast_for_autocast(hidden_ND, weight_VD)
    loss_N: Tensor = _PerToken.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, targets_N, chunk_tokens, ignore_index
    )
    return loss_N


def mean_linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, chunk_tokens: int, ignore_index: int = IGNORE_INDEX
) -> tuple[Tensor, Tensor]:
    """Mean of ``linear_cross_entropy`` over the tokens not ignored (0 if all are), and each token's loss, detached.

    As every token weighs the same, both gradients are computed during the forward pass, while the chunk's logits
    exist; the backward pass only scales them. Between the two, gradients of N x D and V x D are kept.
    """
    hidden_ND, weight_VD = cast_for_autocast(hidden_ND, weight_VD)
    mean: Tensor
    loss_N: Tensor
    mean, loss_N = _Mean.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, targets_N, chunk_tokens, ignore_index, torch.is_grad_enabled()
    )
    return mean, loss_N


def linear_token_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    loss: Callable[[Tensor, slice], Tensor],
    *,
    chunk_tokens: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """A loss that is a sum over tokens of functions of their targets' log-probabilities, with these and entropies.

    ``loss`` is called chunk by chunk with the chunk's log-probabilities (X,) and the slice of tokens they belong to. It
    returns their sum of losses, a scalar in which each token's term depends on its own log-probability alone. Returned
    are the whole sum, with gradient, and, without, all log-probabilities (N,) and the entropies in nats of their
    distributions (N,), float32 or wider.

    Both gradients are computed during the forward pass, while the chunk's logits exist, as each token's derivative is
    known with its log-probability: three products of N x D x V in all. 2 x ``chunk_tokens`` x V numbers are alive.
    """
    hidden_ND, weight_VD = cast_for_autocast(hidden_ND, weight_VD)
    total: Tensor
    logprobs_N: Tensor
    entropy_N: Tensor
    total, logprobs_N, entropy_N = _TokenLoss.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, targets_N, loss, chunk_tokens, torch.is_grad_enabled()
    )
    return total, logprobs_N, entropy_N


def cast_for_autocast(hidden_ND: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Cast both to the autocast dtype, if autocast is on; autograd casts the gradients back."""
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if autocasts(device) else hidden_ND.dtype
    return hidden_ND.to(dtype), weight_VD.to(dtype)


class _Chunk:
    """One chunk's rows and the exponentials of its logits, which are freed with it; entropies on request."""

    def __init__(
        self, hidden_XD: Tensor, weight_VD: Tensor, targets_X: Tensor, ignore_index: int, *, with_entropy: bool = False
    ) -> None:
        self.hidden_XD, self.weight_VD = hidden_XD, weight_VD
        self.counts_X1 = (targets_X != ignore_index).unsqueeze(1)
        self.target_X1 = targets_X.unsqueeze(1).masked_fill(~self.counts_X1, 0)
        logits_XV = product(hidden_XD, weight_VD.t())
        below_XV = logits_XV.to(accumulation_dtype(logits_XV))
        below_XV.sub_(below_XV.amax(1, keepdim=True))
        self.chosen_X1 = below_XV.gather(1, self.target_X1)
        self.exponent_XV = below_XV.exp() if with_entropy else below_XV.exp_()
        self.sum_X1 = self.exponent_XV.sum(1, keepdim=True)
        self.entropy_X: Tensor | None = None
        if with_entropy:
            self.entropy_X = (self.sum_X1.log() - below_XV.mul_(self.exponent_XV).sum(1, keepdim=True) / self.sum_X1)[
                :, 0
            ]

    def loss(self) -> Tensor:
        """Cross-entropy of each row, 0 where ignored: (X,)."""
        return (self.sum_X1.log() - self.chosen_X1).masked_fill_(~self.counts_X1, 0.0).squeeze(1)

    def gradients(self, scale_X1: Tensor, grad_hidden_XD: Tensor | None, grad_weight_VD: Tensor | None) -> None:
        """Write the rows' gradient and add to the weight's; ``scale`` is each row's upstream gradient. Once only."""
        scale_X1 = scale_X1 * self.counts_X1
        self.exponent_XV.mul_(scale_X1 / self.sum_X1).scatter_add_(1, self.target_X1, -scale_X1)
        slope_XV = self.exponent_XV.to(self.hidden_XD.dtype)
        if grad_hidden_XD is not None:
            product(slope_XV, self.weight_VD, grad_hidden_XD)
        if grad_weight_VD is not None:
            add_product(grad_weight_VD, slope_XV.t(), self.hidden_XD)


def _buffers(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Allocate the gradients that are required; the weight's is a sum over chunks, so it is float32 or wider."""
    hidden = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
    weight = torch.zeros_like(weight_VD, dtype=accumulation_dtype(weight_VD)) if ctx.needs_input_grad[1] else None
    return hidden, weight


class _PerToken(torch.autograd.Function):
    """Saves only its inputs."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int, ignore: int) -> Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N)
        ctx.chunk, ctx.ignore = chunk, ignore
        loss_N = hidden_ND.new_empty(hidden_ND.shape[0], dtype=accumulation_dtype(hidden_ND))
        for start in range(0, hidden_ND.shape[0], chunk):
            rows = slice(start, start + chunk)
            loss_N[rows] = _Chunk(hidden_ND[rows], weight_VD, targets_N[rows], ignore).loss()
        return loss_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_ND, weight_VD, targets_N = ctx.saved_tensors
        grad_hidden_ND, grad_weight_VD = _buffers(ctx, hidden_ND, weight_VD)
        for start in range(0, hidden_ND.shape[0], ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            chunk = _Chunk(hidden_ND[rows], weight_VD, targets_N[rows], ctx.ignore)
            grad_rows = None if grad_hidden_ND is None else grad_hidden_ND[rows]
            chunk.gradients(grad_N[rows].unsqueeze(1), grad_rows, grad_weight_VD)
            del chunk
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        return grad_hidden_ND, grad_weight_VD, None, None, None


class _Mean(torch.autograd.Function):
    """Saves both gradients of the mean, to be scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int, ignore: int, needs_grad: bool
    ) -> tuple[Tensor, Tensor]:
        grad_hidden_ND, grad_weight_VD = _buffers(ctx, hidden_ND, weight_VD) if needs_grad else (None, None)
        loss_N = hidden_ND.new_empty(hidden_ND.shape[0], dtype=accumulation_dtype(hidden_ND))
        count = (targets_N != ignore).sum().clamp(min=1)
        share_11 = count.to(loss_N.dtype).reciprocal().view(1, 1)
        for start in range(0, hidden_ND.shape[0], chunk):
            rows = slice(start, start + chunk)
            piece = _Chunk(hidden_ND[rows], weight_VD, targets_N[rows], ignore)
            loss_N[rows] = piece.loss()
            if needs_grad:
                piece.gradients(share_11, None if grad_hidden_ND is None else grad_hidden_ND[rows], grad_weight_VD)
            del piece
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        ctx.save_for_backward(grad_hidden_ND, grad_weight_VD)
        ctx.mark_non_differentiable(loss_N)
        return loss_N.sum() / count, loss_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor, _: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        return *_scaled(ctx, grad), None, None, None, None


class _TokenLoss(torch.autograd.Function):
    """Saves both gradients of the sum, to be scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        loss: Callable[[Tensor, slice], Tensor],
        chunk: int,
        needs_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_hidden_ND, grad_weight_VD = _buffers(ctx, hidden_ND, weight_VD) if needs_grad else (None, None)
        logprobs_N, entropy_N = hidden_ND.new_empty(2, hidden_ND.shape[0], dtype=accumulation_dtype(hidden_ND))
        total = logprobs_N.new_zeros(())
        for start in range(0, hidden_ND.shape[0], chunk):
            rows = slice(start, min(start + chunk, hidden_ND.shape[0]))
            piece = _Chunk(hidden_ND[rows], weight_VD, targets_N[rows], -1, with_entropy=True)
            assert piece.entropy_X is not None
            logprobs_N[rows], entropy_N[rows] = -piece.loss(), piece.entropy_X
            chosen_X = logprobs_N[rows].clone().requires_grad_(needs_grad)
            with torch.set_grad_enabled(needs_grad):
                share = loss(chosen_X, rows)
            total += share.detach()
            if needs_grad:
                (slope_X,) = torch.autograd.grad(share, chosen_X)
                grad_rows = None if grad_hidden_ND is None else grad_hidden_ND[rows]
                piece.gradients(-slope_X[:, None], grad_rows, grad_weight_VD)
            del piece
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        ctx.save_for_backward(grad_hidden_ND, grad_weight_VD)
        ctx.mark_non_differentiable(logprobs_N, entropy_N)
        return total, logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor, *_: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        return *_scaled(ctx, grad), None, None, None, None


def _scaled(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gradients that the forward pass computed, times that of its result."""
    grad_hidden_ND, grad_weight_VD = ctx.saved_tensors
    hidden = None if grad_hidden_ND is None else grad_hidden_ND * grad.to(grad_hidden_ND.dtype)
    weight = None if grad_weight_VD is None else grad_weight_VD * grad.to(grad_weight_VD.dtype)
    return hidden, weight
