"""Logits of every family agree with transformers' classes at every position."""

from __future__ import annotations

import pytest
import torch

from fathom.spec import Llama3Scaling, YarnScaling


def test_logits_agree_at_every_position(pair) -> None:
    ours, theirs = pair.our_logits(pair.tokens_BT), pair.their_logits(pair.tokens_BT)
    assert 0.3 < theirs.std() < 3, "the comparison needs logits of unit scale"
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_the_text_outgrows_what_could_hide_a_mistake(pair) -> None:
    scaling = pair.spec.rope.scaling
    if isinstance(scaling, YarnScaling | Llama3Scaling):
        assert pair.tokens_BT.shape[1] > scaling.original_max_position_embeddings
    window = getattr(pair.spec.attention, "sliding_window", None)
    assert window is None or window < pair.tokens_BT.shape[1]


def test_every_part_matters_to_the_logits(pair) -> None:
    """A parameter that could be dropped unnoticed would make this suite blind; none can."""
    reference = pair.our_logits(pair.tokens_BT[:1, :40])
    blind = []
    for name, tensor in pair.ours.state_dict().items():
        kept = tensor.clone()
        tensor.copy_(kept.flip(-1) if tensor.dim() > 1 else kept * torch.linspace(0.5, 1.5, kept.numel()))
        if (pair.our_logits(pair.tokens_BT[:1, :40]) - reference).abs().max() < 1e-3:
            blind.append(name)
        tensor.copy_(kept)
    assert blind == []


def test_one_token_alone(pair) -> None:
    one_B1 = pair.tokens_BT[:, :1]
    torch.testing.assert_close(pair.our_logits(one_B1), pair.their_logits(one_B1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [2, 31, 33])
def test_shorter_texts(latent_pair, length: int) -> None:
    tokens_BT = latent_pair.tokens_BT[:, -length:]
    torch.testing.assert_close(
        latent_pair.our_logits(tokens_BT), latent_pair.their_logits(tokens_BT), rtol=0, atol=1e-5
    )
