"""Multi-token prediction (V3 §2.2, eqs 21-25): one more layer that predicts one token further.

X = 2 D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fathom.model.attention import AttentionContext
from fathom.model.cache import LayerCache
from fathom.model.decoder_layer import DecoderLayer
from fathom.model.linear import Linear
from fathom.model.moe import Routing, RoutingContext
from fathom.model.norm import RMSNorm
from fathom.spec import ModelSpec


class MultiTokenPrediction(nn.Module):
    """h^k = TRM_k(M_k [RMSNorm(Emb(t_{i+k})) ; RMSNorm(h^{k-1}_i)]); embedding and head are the main model's.

    ``eh_proj`` takes the embedding first, then the hidden state, as the published weights do (the paper prints the
    other order). The result is normalised by the module's own norm before the shared head.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.enorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.hnorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.eh_proj = Linear(2 * spec.hidden_size, spec.hidden_size, bias=False)
        self.block = DecoderLayer(spec, moe=spec.moe is not None)
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)

    def forward(
        self,
        embedded_BTD: Tensor,
        previous_BTD: Tensor,
        context: AttentionContext,
        routing: RoutingContext | None,
        layer_cache: LayerCache | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """Combine position i's hidden state with the embedding of a later token; returns normalised (B, T, D)."""
        pair_BTX = torch.cat((self.enorm(embedded_BTD), self.hnorm(previous_BTD)), dim=-1)
        x_BTD, routed = self.block(self.eh_proj(pair_BTX), context, layer_cache, routing)
        return self.norm(x_BTD), routed
