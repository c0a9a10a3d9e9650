"""Gradients of every parameter agree with transformers', mapped through the published names."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fathom import kernels
from fathom.checkpoint.hf import load_hf
from fathom.model import Decoder


def next_token_loss(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), tokens_BT[:, 1:].flatten())


def gradients_by_our_names(theirs: Any, directory: Path) -> dict[str, Tensor]:
    """Save their gradients as if they were weights, and read them back under our names."""
    kept = {name: parameter.data for name, parameter in theirs.named_parameters()}
    for parameter in theirs.parameters():
        parameter.data = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
    theirs.save_pretrained(directory)
    for name, parameter in theirs.named_parameters():
        parameter.data = kept[name]
        parameter.grad = None
    return load_hf(directory)[1]


def our_gradients(ours: Decoder, tokens_BT: Tensor, *, checkpointed: bool, fused: bool) -> dict[str, Tensor]:
    ours.zero_grad(set_to_none=True)
    hidden_BTD = ours(tokens_BT, checkpoint_activations=checkpointed).hidden_BTD
    if fused:
        loss_fn = partial(kernels.linear_cross_entropy, targets_N=tokens_BT[:, 1:].flatten(), chunk_tokens=32)
        loss = ours.apply_head(hidden_BTD[:, :-1].flatten(0, 1), loss_fn).mean()
    else:
        loss = next_token_loss(ours.logits(hidden_BTD), tokens_BT)
    loss.backward()
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    ours.zero_grad(set_to_none=True)
    return {name: gradient.detach() for name, gradient in found.items() if gradient is not None}


@pytest.fixture
def reference(pair, tmp_path: Path) -> dict[str, Tensor]:
    tokens_BT = pair.tokens_BT
    next_token_loss(pair.theirs(tokens_BT).logits, tokens_BT).backward()
    return gradients_by_our_names(pair.theirs, tmp_path / "gradients")


def test_gradients_of_all_parameters_agree(pair, reference: dict[str, Tensor]) -> None:
    buffers = {name for name, _ in pair.ours.named_buffers()}
    for ways in ({"checkpointed": False, "fused": False}, {"checkpointed": True, "fused": True}):
        ours = our_gradients(pair.ours, pair.tokens_BT, **ways)
        assert ours.keys() == reference.keys() - buffers
        errors = {name: relative_error(ours[name], reference[name]) for name in ours}
        assert {name: error for name, error in errors.items() if error > 1e-4} == {}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Distance over the expected norm; what is zero but for rounding (a key bias, say) counts absolutely."""
    return float((found - expected).norm() / expected.norm().clamp_min(1e-3))


def test_the_embedding_of_a_tied_model_gathers_both_gradients(pair) -> None:
    if not pair.spec.tie_word_embeddings:
        assert pair.ours.lm_head.weight is not None
        assert pair.ours.lm_head.weight is not pair.ours.embed_tokens.weight
        return
    assert pair.ours.lm_head.weight_VD is pair.ours.embed_tokens.weight
    assert "lm_head.weight" not in pair.ours.state_dict()
    gradient = our_gradients(pair.ours, pair.tokens_BT, checkpointed=False, fused=False)["embed_tokens.weight"]
    absent = sorted(set(range(pair.spec.vocab_size)) - set(pair.tokens_BT.flatten().tolist()))
    assert absent, "some token must not occur, so that only the head moves its row"
    assert gradient[absent].abs().sum() > 0
