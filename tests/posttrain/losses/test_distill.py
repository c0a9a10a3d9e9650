"""Divergence of a student from a teacher against torch's own, all logits at once; and how much is alive."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fathom.errors import DataError
from fathom.posttrain.losses import divergence
from fathom.spec.posttrain import DistillationLoss

SPECS = [
    DistillationLoss(divergence=name, mix=mix, temperature=temperature)  # type: ignore[arg-type]
    for name, mix in (("reverse_kl", 0.5), ("forward_kl", 0.5), ("jensen_shannon", 0.5), ("jensen_shannon", 0.1))
    for temperature in (1.0, 0.7)
]


def make(dtype: torch.dtype = torch.float64, tokens: int = 7, vocab: int = 13) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = ((tokens, 6), (vocab, 6), (tokens, 4), (vocab, 4))
    made = [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return made[0].requires_grad_(), made[1].requires_grad_(), made[2], made[3]


def expected(h: Tensor, w: Tensor, th: Tensor, tw: Tensor, spec: DistillationLoss) -> Tensor:
    student = (F.linear(h, w) / spec.temperature).log_softmax(-1)
    teacher = (F.linear(th, tw) / spec.temperature).log_softmax(-1)

    def kl(first: Tensor, second: Tensor) -> Tensor:
        return F.kl_div(second, first, log_target=True, reduction="none").sum(-1)

    if spec.divergence == "reverse_kl":
        return kl(student, teacher)
    if spec.divergence == "forward_kl":
        return kl(teacher, student)
    middle = (spec.mix * teacher.exp() + (1 - spec.mix) * student.exp()).log()
    return spec.mix * kl(teacher, middle) + (1 - spec.mix) * kl(student, middle)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_values_and_gradients_equal_torch(spec: DistillationLoss, chunk: int) -> None:
    h, w, th, tw = make()
    upstream = torch.randn(7, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    actual, wanted = divergence(h, w, th, tw, spec, chunk_tokens=chunk), expected(h, w, th, tw, spec)
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-10)
    assert (actual >= 0).all()
    for got, right in zip(
        torch.autograd.grad(actual, (h, w), upstream), torch.autograd.grad(wanted, (h, w), upstream), strict=True
    ):
        torch.testing.assert_close(got, right, rtol=0, atol=1e-10)


@pytest.mark.parametrize("spec", SPECS[::2], ids=str)
def test_gradcheck(spec: DistillationLoss) -> None:
    h, w, th, tw = make(tokens=4)
    assert torch.autograd.gradcheck(lambda a, b: divergence(a, b, th, tw, spec, chunk_tokens=3), (h, w))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_student_equal_to_its_teacher_is_at_zero(spec: DistillationLoss) -> None:
    h, w, _, _ = make()
    loss_N = divergence(h, w, h.detach(), w.detach(), spec, chunk_tokens=3)
    assert loss_N.abs().max() < 1e-12
    assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(loss_N.sum(), (h, w)))


def test_the_teacher_gets_no_gradient_and_frozen_parts_of_the_student_none() -> None:
    h, w, th, tw = make()
    divergence(h, w, th.requires_grad_(), tw.requires_grad_(), SPECS[0], chunk_tokens=3).sum().backward()
    assert th.grad is None
    assert tw.grad is None
    for frozen in ((h.detach(), w), (h, w.detach())):
        wanted = torch.autograd.grad(expected(h, w, th, tw, SPECS[0]).sum(), frozen[0] if frozen[1] is not w else w)
        loss = divergence(frozen[0], frozen[1], th, tw, SPECS[0], chunk_tokens=3).sum()
        got = torch.autograd.grad(loss, frozen[0] if frozen[1] is not w else w)
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_gives_a_float32_loss_near_the_exact_one(autocast: bool) -> None:
    exact = make()
    h, w, th, tw = make(torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss_N = divergence(h, w, th, tw, SPECS[0], chunk_tokens=3)
    assert loss_N.dtype == torch.float32
    wanted = expected(*exact, SPECS[0])
    assert ((loss_N - wanted).abs() <= 0.03 * wanted.abs() + 0.03).all()
    for got, right in zip(
        torch.autograd.grad(loss_N.sum(), (h, w)), torch.autograd.grad(wanted.sum(), exact[:2]), strict=True
    ):
        assert (got.double() - right).norm() <= 0.05 * right.norm()


class AliveRows(TorchDispatchMode):
    """Rows of all (any, V) tensors alive at once, heads aside; one storage counts once."""

    def __init__(self, *heads: Tensor) -> None:
        super().__init__()
        self.vocab, self.heads, self.most = heads[0].shape[0], {head.data_ptr() for head in heads}, 0
        self.alive: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        logits = isinstance(result, Tensor) and result.ndim == 2 and result.shape[1] == self.vocab
        if logits and result.data_ptr() not in self.heads:
            self.alive.append(weakref.ref(result))
        alive = [tensor for ref in self.alive if (tensor := ref()) is not None]
        self.alive = [weakref.ref(tensor) for tensor in alive]
        self.most = max(self.most, sum({t.untyped_storage().data_ptr(): t.shape[0] for t in alive}.values()))
        return result


@pytest.mark.parametrize("spec", SPECS[::2], ids=str)
def test_what_is_alive_depends_on_the_chunk_and_not_on_the_tokens(spec: DistillationLoss) -> None:
    for tokens in (8, 64):
        h, w, th, tw = make(tokens=tokens, vocab=101)
        with AliveRows(w, tw) as rows:
            divergence(h, w, th, tw, spec, chunk_tokens=4).sum().backward()
        assert 8 <= rows.most <= 7 * 4


def test_two_vocabularies_are_refused() -> None:
    h, w, th, tw = make()
    with pytest.raises(DataError, match="the teacher's vocabulary is 12, the student's 13"):
        divergence(h, w, th, tw[:-1], SPECS[0], chunk_tokens=3)
    with pytest.raises(DataError, match="teacher_hidden_NY: holds 6 tokens, the student's 7"):
        divergence(h, w, th[:-1], tw, SPECS[0], chunk_tokens=3)
