"""The encoder-decoder: two stacks of pre-norm layers over one embedding.

B batch, S source tokens, T target tokens, D d_model, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.model.moe import Routing, RoutingContext
from fathom.model.norm import RMSNorm
from fathom.study.switch_t5.attention import Attention, KVCache, RelativeBias, padding_bias
from fathom.study.switch_t5.feed_forward import DenseMLP, SparseMLP
from fathom.study.switch_t5.spec import EncoderDecoderSpec

_DECODER_DRAWS = 1 << 16  # the decoder's layers draw from streams after all of the encoder's


@dataclass(frozen=True, slots=True)
class EncoderDecoderOutput:
    """The outputs of a forward pass; each stack has one routing per mixture of experts."""

    logits_BTV: Tensor
    encoded_BSD: Tensor
    encoder_routing: tuple[Routing, ...]
    decoder_routing: tuple[Routing, ...]


@dataclass(frozen=True, slots=True)
class EncoderDecoderCache:
    """The cache of decoding: each layer's self-attention keys and values, and those of the source."""

    own: tuple[KVCache, ...]
    source: tuple[KVCache, ...]

    @classmethod
    def empty(cls, layers: int) -> EncoderDecoderCache:
        """Nothing seen yet."""
        return cls(tuple(KVCache() for _ in range(layers)), tuple(KVCache() for _ in range(layers)))


@dataclass(frozen=True, slots=True)
class _Source:
    """The encoded source as the decoder's layers attend to it."""

    encoded_BSD: Tensor
    bias_B11S: Tensor | None


class Layer(nn.Module):
    """x + self-attention, then (decoder) x + attention to the source, then x + feed-forward, each over norm(x)."""

    def __init__(self, spec: EncoderDecoderSpec, *, decoder: bool, sparse: bool) -> None:
        super().__init__()
        self.self_attn_norm = RMSNorm(spec.d_model, spec.layer_norm_epsilon)
        self.self_attn = Attention(spec)
        self.cross_attn_norm = RMSNorm(spec.d_model, spec.layer_norm_epsilon) if decoder else None
        self.cross_attn = Attention(spec) if decoder else None
        self.mlp_norm = RMSNorm(spec.d_model, spec.layer_norm_epsilon)
        self.mlp: DenseMLP | SparseMLP
        if sparse and spec.moe is not None:
            self.mlp = SparseMLP(spec, spec.moe)
        else:
            self.mlp = DenseMLP(spec)

    def forward(
        self,
        x_BTD: Tensor,
        bias: Tensor,
        source: _Source | None,
        memory: tuple[KVCache, KVCache] | None,
        routing: RoutingContext | None,
    ) -> tuple[Tensor, Routing | None]:
        """Return the new residual stream and, for a mixture of experts, what its router decided."""
        normed_BTD = self.self_attn_norm(x_BTD)
        keys, values = self.self_attn.keys_values(normed_BTD)
        if memory is not None:
            keys, values = memory[0].append(keys, values)
        x_BTD = x_BTD + self.self_attn(normed_BTD, keys, values, bias)
        if self.cross_attn is not None and self.cross_attn_norm is not None and source is not None:
            keys, values = self._of_source(source, memory[1] if memory is not None else None)
            x_BTD = x_BTD + self.cross_attn(self.cross_attn_norm(x_BTD), keys, values, source.bias_B11S)
        normed_BTD = self.mlp_norm(x_BTD)
        if isinstance(self.mlp, SparseMLP):
            mixed_BTD, routed = self.mlp(normed_BTD, routing)
            return x_BTD + mixed_BTD, routed
        return x_BTD + self.mlp(normed_BTD), None

    def _of_source(self, source: _Source, memory: KVCache | None) -> tuple[Tensor, Tensor]:
        """Keys and values of the source, projected once where there is a memory."""
        assert self.cross_attn is not None
        if memory is not None and memory.keys_BHSK is not None and memory.values_BHSK is not None:
            return memory.keys_BHSK, memory.values_BHSK
        keys, values = self.cross_attn.keys_values(source.encoded_BSD)
        return (keys, values) if memory is None else memory.append(keys, values)


class Stack(nn.Module):
    """All layers of the encoder or the decoder, with their common position bias and a last norm."""

    def __init__(self, spec: EncoderDecoderSpec, *, decoder: bool) -> None:
        super().__init__()
        depth = spec.num_decoder_layers if decoder else spec.num_layers
        self.relative_bias = RelativeBias(spec, causal=decoder)
        self.layers = nn.ModuleList(
            Layer(spec, decoder=decoder, sparse=spec.is_sparse(i, decoder=decoder)) for i in range(depth)
        )
        self.norm = RMSNorm(spec.d_model, spec.layer_norm_epsilon)
        self.first_draw = _DECODER_DRAWS if decoder else 0

    def forward(
        self,
        x_BTD: Tensor,
        *,
        bias_B11T: Tensor | None = None,
        source: _Source | None = None,
        memory: EncoderDecoderCache | None = None,
        seeds_B: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Routing, ...]]:
        """Run the layers; ``bias_B11T`` masks padding of the stack's own tokens."""
        seen = memory.own[0].keys_BHSK if memory is not None else None
        past = 0 if seen is None else seen.shape[2]
        bias = self.relative_bias(x_BTD.shape[1], past + x_BTD.shape[1])
        if bias_B11T is not None:
            bias = bias + bias_B11T
        context = None if seeds_B is None else RoutingContext(seeds_B=seeds_B)
        routing: list[Routing] = []
        for index, layer in enumerate(self.layers):
            kept = (memory.own[index], memory.source[index]) if memory is not None else None
            guided = context.at(self.first_draw + index) if context is not None else None
            x_BTD, routed = layer(x_BTD, bias, source, kept, guided)
            if routed is not None:
                routing.append(routed)
        return self.norm(x_BTD), tuple(routing)


class EncoderDecoder(nn.Module):
    """A T5 encoder-decoder with mixtures of experts. It has no dropout: the study trains tiny models for a minute."""

    def __init__(self, spec: EncoderDecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.shared = nn.Embedding(spec.vocab_size, spec.d_model)
        self.encoder = Stack(spec, decoder=False)
        self.decoder = Stack(spec, decoder=True)
        tied = spec.tie_word_embeddings
        self.lm_head = None if tied else nn.Linear(spec.d_model, spec.vocab_size, bias=False)

    def forward(
        self,
        source_BS: Tensor,
        target_BT: Tensor,
        *,
        source_mask_BS: Tensor | None = None,
        seeds_B: Tensor | None = None,
    ) -> EncoderDecoderOutput:
        """Predict each next token of ``target_BT``, which starts with ``decoder_start_token_id``.

        ``source_mask_BS`` is true for real tokens. ``seeds_B`` (int64) is what routers draw from while training.
        """
        encoded_BSD, before = self.encode(source_BS, source_mask_BS=source_mask_BS, seeds_B=seeds_B)
        logits_BTV, after = self.decode(target_BT, encoded_BSD, source_mask_BS=source_mask_BS, seeds_B=seeds_B)
        return EncoderDecoderOutput(logits_BTV, encoded_BSD, before, after)

    def encode(
        self, source_BS: Tensor, *, source_mask_BS: Tensor | None = None, seeds_B: Tensor | None = None
    ) -> tuple[Tensor, tuple[Routing, ...]]:
        """Run the encoder: its output (B, S, D) after the last norm."""
        x_BSD = self.shared(source_BS)
        bias = None if source_mask_BS is None else padding_bias(source_mask_BS, x_BSD.dtype)
        encoded: tuple[Tensor, tuple[Routing, ...]] = self.encoder(x_BSD, bias_B11T=bias, seeds_B=seeds_B)
        return encoded

    def decode(
        self,
        target_BT: Tensor,
        encoded_BSD: Tensor,
        *,
        source_mask_BS: Tensor | None = None,
        memory: EncoderDecoderCache | None = None,
        seeds_B: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Routing, ...]]:
        """Run the decoder over new target tokens, after those ``memory`` holds: float32 logits (B, T, V)."""
        bias = None if source_mask_BS is None else padding_bias(source_mask_BS, encoded_BSD.dtype)
        hidden_BTD, routing = self.decoder(
            self.shared(target_BT), source=_Source(encoded_BSD, bias), memory=memory, seeds_B=seeds_B
        )
        if self.lm_head is None:
            logits_BTV = F.linear(hidden_BTD * self.spec.d_model**-0.5, self.shared.weight)
        else:
            logits_BTV = self.lm_head(hidden_BTD)
        return logits_BTV.float(), routing

    def routers(self) -> Sequence[SparseMLP]:
        """All mixtures of experts, the encoder's first."""
        return [module for module in self.modules() if isinstance(module, SparseMLP)]


def build(
    spec: EncoderDecoderSpec, *, seed: int | None = 0, scale: float = 0.1, dtype: torch.dtype = torch.float32
) -> EncoderDecoder:
    """Make the model on the CPU; ``seed`` None leaves the weights unset, for loading over them.

    Matrices are truncated normal (at two deviations) of variance ``scale`` / fan-in, Switch's 0.1 being a tenth of
    what was usual (§2.4); the embedding is standard normal, the position bias zero. Routers stay in float32 whatever
    ``dtype``.
    """
    model = EncoderDecoder(spec)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                _initialize(name, parameter, scale, generator)
    return model.to(dtype)


def _initialize(name: str, parameter: Tensor, scale: float, generator: torch.Generator) -> None:
    if parameter.dim() == 1:
        parameter.fill_(1.0)
    elif name.endswith("relative_bias.weight"):
        parameter.zero_()
    elif name == "shared.weight":
        parameter.normal_(generator=generator)
    else:
        deviation = math.sqrt(scale / parameter.shape[-1])
        nn.init.trunc_normal_(parameter, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator)
