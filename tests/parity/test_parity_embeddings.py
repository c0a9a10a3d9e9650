"""Embeddings of every family are transformers' last hidden states, pooled and of length 1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fathom.inference.embedding import Pooling, embed

STEP = 16


def sequences(pair: Any) -> list[list[int]]:
    """Lengths that share a pass, fill one exactly, and need several."""
    ids = pair.tokens_BT[0].tolist()
    return [ids[:3], ids[5:12], ids[1:2], ids[:STEP], ids, ids[2 : 2 + 2 * STEP], ids[:4]]


def theirs(pair: Any, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        output = pair.theirs(torch.tensor([ids]), output_hidden_states=True)
    return output.hidden_states[-1][0].float()  # type: ignore[no-any-return]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pooled_hidden_states_agree(pair: Any, pooling: Pooling) -> None:
    given = sequences(pair)
    found_SD = embed(pair.ours, given, pooling=pooling, step_tokens=STEP)
    wanted = [theirs(pair, ids) for ids in given]
    pooled = [hidden_TD.mean(0) if pooling == "mean" else hidden_TD[-1] for hidden_TD in wanted]
    torch.testing.assert_close(found_SD, normalize(torch.stack(pooled), dim=-1), rtol=0, atol=1e-5)


def test_fewer_dimensions_are_the_first_ones_scaled_to_length_1(latent_pair: Any) -> None:
    given = sequences(latent_pair)
    whole_SD = embed(latent_pair.ours, given)
    found_SD = embed(latent_pair.ours, given, dimensions=8)
    torch.testing.assert_close(found_SD, normalize(whole_SD[:, :8], dim=-1))
