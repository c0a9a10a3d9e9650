"""The policy objective from one pass over the logits against the one that computes them again."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from fathom.posttrain.online import LogprobMonitor
from fathom.posttrain.policy import PolicyObjective
from fathom.spec.posttrain import KlPenalty, PolicyLoss


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kl", [None, KlPenalty(beta=0.3, corrected=True)])
def test_a_loss_by_token_needs_the_logits_once(temperature: float, kl: KlPenalty | None) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, head = torch.randn(17, 8, generator=generator), torch.randn(29, 8, generator=generator)
    targets = torch.randint(29, (17,), generator=generator)
    columns = {
        "old": -3 + torch.randn(17, generator=generator),
        "reference": -3 + torch.randn(17, generator=generator),
        "advantage": torch.randn(17, generator=generator),
        "weight": torch.rand(17, generator=generator),
        "row": torch.arange(17) // 4,
    }
    loss = PolicyLoss(clip_low=0.2, clip_high=0.5, dual_clip=3.0, kl=kl)
    assert loss.by_token
    objective = PolicyObjective(loss, temperature, 5, LogprobMonitor())
    found, gradients = [], []
    for computed in (objective._by_token, objective._whole):
        inputs = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        total, terms, logprobs, entropy = computed(*inputs, targets, columns)
        gradients.append(torch.autograd.grad(total, inputs))
        result = [getattr(terms, f.name).detach() for f in fields(terms)]
        found.append([total.detach(), logprobs, entropy, *result])
    for got, wanted in zip((*found[0], *gradients[0]), (*found[1], *gradients[1]), strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_loss_in_which_tokens_meet_is_not_by_token() -> None:
    assert not PolicyLoss(ratio="sequence").by_token
    assert not PolicyLoss(kl=KlPenalty(level="sequence")).by_token
