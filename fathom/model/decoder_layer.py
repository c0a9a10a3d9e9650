"""One decoder layer: pre-norm attention, then a pre-norm feed-forward layer, dense or a mixture of experts."""

from __future__ import annotations

from torch import Tensor, nn

from fathom.model.attention import AttentionContext, make_attention
from fathom.model.cache import LayerCache
from fathom.model.ffn import SwiGLU
from fathom.model.moe import MoELayer, Routing, RoutingContext
from fathom.model.norm import RMSNorm
from fathom.spec import ModelSpec


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, spec: ModelSpec, *, moe: bool) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.self_attn = make_attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.mlp: SwiGLU | MoELayer
        if moe:
            assert spec.moe is not None
            self.mlp = MoELayer(spec.hidden_size, spec.moe)
        else:
            assert spec.intermediate_size is not None
            self.mlp = SwiGLU(spec.hidden_size, spec.intermediate_size, bias=spec.mlp_bias)

    def forward(
        self, x_BTD: Tensor, context: AttentionContext, layer_cache: LayerCache | None, routing: RoutingContext | None
    ) -> tuple[Tensor, Routing | None]:
        """Return the new residual stream (B, T, D) and the routing of a mixture of experts."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), context, layer_cache)
        normed_BTD = self.post_attention_layernorm(x_BTD)
        if isinstance(self.mlp, MoELayer):
            mixed_BTD, routed = self.mlp(normed_BTD, routing)
            return x_BTD + mixed_BTD, routed
        return x_BTD + self.mlp(normed_BTD), None
