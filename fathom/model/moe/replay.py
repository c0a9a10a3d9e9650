"""Record the routing of a pass as one tensor, and measure how far two passes routed alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.errors import DataError
from fathom.model.moe.router import Routing


def chosen_experts(routing: Sequence[Routing]) -> Tensor:
    """Stack the layers' chosen experts: (B, T, L, K), best first; what ``Decoder.forward`` replays."""
    return torch.stack([routed.indices_BTK for routed in routing], dim=2)


def routing_agreement_sums(recorded_NLK: Tensor, used_NLK: Tensor) -> dict[str, Tensor]:
    """Count the tokens whose routing is known in both passes, and how many of these agree; parts of a batch add up.

    "routing_equal" adds each token's share of layers whose sets of experts are equal, "routing_shared" its share of
    experts in common: divided by "routing_tokens" they are means. A layer with a -1 in it is unknown; a token of which
    some layers are known counts for that part.

    Raises:
        DataError: the two are not of the same shape.
    """
    if recorded_NLK.shape != used_NLK.shape or recorded_NLK.dim() != 3:
        raise DataError(
            f"routing: {tuple(recorded_NLK.shape)} recorded and {tuple(used_NLK.shape)} used are not the same "
            "(tokens, layers, experts per token); compare the same tokens in the same model"
        )
    layers, chosen = recorded_NLK.shape[1:]
    known_NL = ((recorded_NLK >= 0) & (used_NLK >= 0)).all(-1)
    common_NL = (recorded_NLK[..., None] == used_NLK[..., None, :]).any(-1).sum(-1) * known_NL
    return {
        "routing_tokens": known_NL.sum() / layers,
        "routing_equal": (common_NL == chosen).sum() / layers,
        "routing_shared": common_NL.sum() / (layers * chosen),
    }
