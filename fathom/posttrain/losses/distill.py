"""On-policy distillation: divergence of a student from a teacher at tokens the student sampled.

X tokens of one chunk, Y the teacher's hidden size beside the student's D.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.errors import DataError
from fathom.kernels.cross_entropy import cast_for_autocast
from fathom.kernels.products import add_product, product
from fathom.kernels.tensors import accumulation_dtype
from fathom.posttrain.losses import checks
from fathom.spec.posttrain import DistillationLoss


def divergence(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    teacher_hidden_NY: Tensor,
    teacher_weight_VY: Tensor,
    spec: DistillationLoss,
    *,
    chunk_tokens: int,
) -> Tensor:
    """Divergence in nats at each token, exact over the vocabulary: (N,), float32 or wider.

    Only the student's hidden states and head get gradients. A few tensors of ``chunk_tokens`` x V are alive at once,
    forward or backward; the backward pass computes both logits again.

    Raises:
        DataError: the vocabularies or the numbers of tokens differ.
    """
    if weight_VD.shape[0] != teacher_weight_VY.shape[0]:
        sizes = f"the teacher's vocabulary is {teacher_weight_VY.shape[0]}, the student's {weight_VD.shape[0]}"
        raise DataError(f"teacher_weight_VY: {sizes}; use a teacher with the student's tokenizer")
    if hidden_ND.shape[0] != teacher_hidden_NY.shape[0]:
        counts = f"{teacher_hidden_NY.shape[0]} tokens, the student's {hidden_ND.shape[0]}"
        raise DataError(f"teacher_hidden_NY: holds {counts}; give both the same tokens")
    student = cast_for_autocast(hidden_ND, weight_VD)
    teacher = cast_for_autocast(teacher_hidden_NY.detach(), teacher_weight_VY.detach())
    loss_N: Tensor = _Divergence.apply(*student, *teacher, spec, chunk_tokens)  # type: ignore[no-untyped-call]
    return loss_N


def distillation_advantages(old_N: Tensor, teacher_N: Tensor) -> Tensor:
    """Estimate - KL(student || teacher) at each drawn token: log teacher - log student, as a policy loss's advantage.

    With ``policy_loss`` at ratio 1 its expected gradient is the reverse KL's at each position, from one log-probability
    a token where ``divergence`` needs the teacher's whole distribution.
    """
    checks.same_length(old_N=old_N, teacher_N=teacher_N)
    return (teacher_N - old_N).detach()


class _Chunk:
    """One chunk's divergence; ``slope`` is its derivative by the student's logits at temperature 1."""

    def __init__(self, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], spec: DistillationLoss) -> None:
        self.spec = spec
        self.student_XV = _logprobs(*student, spec.temperature)
        self.teacher_XV = _logprobs(*teacher, spec.temperature)

    def loss(self) -> Tensor:
        """Divergence of each row: (X,)."""
        if self.spec.divergence == "reverse_kl":
            return _kl(self.student_XV, self.teacher_XV)
        if self.spec.divergence == "forward_kl":
            return _kl(self.teacher_XV, self.student_XV)
        middle_XV, mix = self._middle(), self.spec.mix
        return mix * _kl(self.teacher_XV, middle_XV) + (1 - mix) * _kl(self.student_XV, middle_XV)

    def slope(self) -> Tensor:
        """q (d - sum of q d), d being log q less what it is compared with; q - p for the forward KL. (X, V)."""
        chance_XV = self.student_XV.exp()
        if self.spec.divergence == "forward_kl":
            return chance_XV.sub_(self.teacher_XV.exp())
        against_XV, share = self.teacher_XV, 1.0
        if self.spec.divergence == "jensen_shannon":
            against_XV, share = self._middle(), 1 - self.spec.mix
        gap_XV = self.student_XV - against_XV
        mean_X1 = (chance_XV * gap_XV).sum(1, keepdim=True)
        return gap_XV.sub_(mean_X1).mul_(chance_XV).mul_(share)

    def _middle(self) -> Tensor:
        mix = self.spec.mix
        return torch.logaddexp(self.teacher_XV + math.log(mix), self.student_XV + math.log1p(-mix))


def _logprobs(hidden_XD: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
    logits_XV = product(hidden_XD, weight_VD.t())
    return logits_XV.to(accumulation_dtype(logits_XV)).div_(temperature).log_softmax(1)


def _kl(first_XV: Tensor, second_XV: Tensor) -> Tensor:
    return (first_XV - second_XV).mul_(first_XV.exp()).sum(1)


class _Divergence(torch.autograd.Function):
    """Keeps only its inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        teacher_hidden_NY: Tensor,
        teacher_weight_VY: Tensor,
        spec: DistillationLoss,
        chunk: int,
    ) -> Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD, teacher_hidden_NY, teacher_weight_VY)
        ctx.spec, ctx.chunk = spec, chunk
        loss_N = hidden_ND.new_empty(hidden_ND.shape[0], dtype=accumulation_dtype(hidden_ND))
        for start in range(0, hidden_ND.shape[0], chunk):
            rows = slice(start, start + chunk)
            teacher = (teacher_hidden_NY[rows], teacher_weight_VY)
            loss_N[rows] = _Chunk((hidden_ND[rows], weight_VD), teacher, spec).loss()
        return loss_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden_ND, weight_VD, teacher_hidden_NY, teacher_weight_VY = ctx.saved_tensors
        grad_hidden_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        grad_weight_VD = (
            torch.zeros_like(weight_VD, dtype=accumulation_dtype(weight_VD)) if ctx.needs_input_grad[1] else None
        )
        for start in range(0, hidden_ND.shape[0], ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            teacher = (teacher_hidden_NY[rows], teacher_weight_VY)
            wide_XV = _Chunk((hidden_ND[rows], weight_VD), teacher, ctx.spec).slope()
            slope_XV = wide_XV.mul_(grad_N[rows].unsqueeze(1) / ctx.spec.temperature).to(hidden_ND.dtype)
            if grad_hidden_ND is not None:
                product(slope_XV, weight_VD, grad_hidden_ND[rows])
            if grad_weight_VD is not None:
                add_product(grad_weight_VD, slope_XV.t(), hidden_ND[rows])
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        return grad_hidden_ND, grad_weight_VD, None, None, None, None
