"""The output head: one module for logits and losses, and a weight that is read in calls of it alone."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fathom
from fathom.kernels import linear_cross_entropy
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.spec import ModelSpec
from fathom.train.loss import language_model_loss, mtp_loss
from tests.sharded import one_rank, sharded, whole_gradients

__all__ = ["one_rank"]

TOKENS = torch.randint(0, 100, (2, 13), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("tied", [False, True])
def test_a_function_of_the_head_sees_the_projection_that_makes_the_logits(
    grouped_spec: Callable[..., ModelSpec], tied: bool
) -> None:
    model = build(grouped_spec(tie_word_embeddings=tied))
    hidden_BTD = model(TOKENS).hidden_BTD
    loss_N = model.apply_head(
        hidden_BTD.flatten(0, 1), partial(linear_cross_entropy, targets_N=TOKENS.flatten(), chunk_tokens=4)
    )
    logits_NV = model.logits(hidden_BTD).flatten(0, 1)
    expected_N = torch.nn.functional.cross_entropy(logits_NV, TOKENS.flatten(), reduction="none")
    torch.testing.assert_close(loss_N, expected_N)
    assert ("lm_head.weight" in model.state_dict()) is not tied


def test_a_copy_of_a_tied_model_is_tied_to_its_own_embedding(grouped_spec: Callable[..., ModelSpec]) -> None:
    model = build(grouped_spec(tie_word_embeddings=True))
    other = copy.deepcopy(model).double()
    with torch.no_grad():
        other.embed_tokens.weight.mul_(2)
    hidden = torch.randn(3, 32)
    torch.testing.assert_close(other.logits(hidden.double()), 2 * model.logits(hidden))


def losses_and_gradients(model: Decoder) -> tuple[Tensor, dict[str, Tensor]]:
    output = model(TOKENS[:, :-1], mtp=True)
    main = partial(language_model_loss, targets_BT=TOKENS[:, 1:], chunk_tokens=4)
    further = partial(mtp_loss, targets_BT=TOKENS[:, 1:], weight=0.3, chunk_tokens=4)
    losses = torch.stack((model.apply_head(output.hidden_BTD, main)[0], model.apply_head(output.mtp_hidden, further)))
    losses.sum().backward()
    return losses.detach(), whole_gradients(model)


@pytest.mark.parametrize("tied", [False, True])
def test_losses_of_a_sharded_model_read_the_gathered_projection(
    latent_spec: Callable[..., ModelSpec], one_rank: Any, tied: bool
) -> None:
    spec = latent_spec(tie_word_embeddings=tied, num_nextn_predict_layers=1)
    expected, gradients = losses_and_gradients(build(spec))
    model = sharded(build(spec), one_rank)
    losses, found = losses_and_gradients(model)
    assert torch.equal(losses, expected)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(found[name], gradient), name
    with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
        torch.nn.functional.linear(torch.randn(2, 32), model.lm_head.weight_VD)


def test_nothing_but_initialisation_and_quantization_looks_inside_the_head() -> None:
    """Whatever trains or scores calls the head: an attribute of it would be a shard, or freed, under FSDP."""
    package = Path(fathom.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith(".lm_head"):
                found.add((path.relative_to(package).as_posix(), node.attr))
    assert found == {("model/quantize.py", "weight_VD"), ("posttrain/reward_model.py", "weight_VD")}
