"""The decoder: one forward for training, prefill and decoding, of every family.

B batch, T new tokens, D hidden size, V vocabulary, N image tokens, L mixture-of-experts layers, K experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fathom.errors import ContextError, SpecError
from fathom.model.attention import AttentionContext, LatentForm
from fathom.model.cache import KeyValueCache, causal_metadata, packed_metadata
from fathom.model.decoder_layer import DecoderLayer
from fathom.model.moe import Routing, RoutingContext
from fathom.model.mtp import MultiTokenPrediction
from fathom.model.norm import RMSNorm
from fathom.model.quantized import QuantizedLinear
from fathom.model.rope import Rope
from fathom.model.vision import VisionTowers
from fathom.spec import GroupedQueryAttention, ModelSpec


@dataclass(frozen=True, slots=True)
class DecoderOutput:
    """What a forward pass leaves.

    ``hidden_BTD`` is after the final norm. ``routing`` has one entry per mixture-of-experts layer, MTP modules last.
    ``mtp_hidden[k - 1]`` is (B, T - k, D); its position i predicts token i + k + 1.
    """

    hidden_BTD: Tensor
    routing: tuple[Routing, ...]
    mtp_hidden: tuple[Tensor, ...] = ()


class Decoder(nn.Module):
    """A pre-norm transformer decoder made from a spec."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(spec, moe=spec.is_moe_layer(i)) for i in range(spec.num_hidden_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        tied = spec.tie_word_embeddings
        self.lm_head: nn.Linear | QuantizedLinear | None = None
        if not tied:
            self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        self.mtp = nn.ModuleList(MultiTokenPrediction(spec) for _ in range(spec.num_nextn_predict_layers))
        self.vision = None if spec.vision is None else VisionTowers(spec.vision, spec.hidden_size)
        self.rope = Rope(spec.rope, spec.attention.rope_dim)
        attention = spec.attention
        self.window = attention.sliding_window if isinstance(attention, GroupedQueryAttention) else None
        self.uses_hash_routing = spec.moe is not None and spec.moe.router.score == "hash"

    @property
    def head_weight(self) -> Tensor:
        """The output projection (V, D); the embedding itself when they are tied. A packed head is unpacked here."""
        if self.lm_head is None or self.spec.tie_word_embeddings:
            return self.embed_tokens.weight
        return self.lm_head.weight

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        features_ND: Tensor | None = None,
        cache: KeyValueCache | None = None,
        lengths: Sequence[int] | None = None,
        shared: Sequence[int] | None = None,
        drop_exempt_B: Tensor | None = None,
        routing_seeds_B: Tensor | None = None,
        routed_experts_BTLK: Tensor | None = None,
        checkpoint_activations: bool = False,
        mtp: bool = False,
        form: LatentForm = "auto",
    ) -> DecoderOutput:
        """Run ``tokens_BT`` (int64), after what the cache holds if one is given.

        ``features_ND`` are embeddings of image tokens, as ``vision`` makes them: row n takes the place of the n-th
        ``image_token_id`` of ``tokens_BT``, counted along each sequence and then from sequence to sequence.
        ``lengths`` says that ``tokens_BT`` is (1, N), whole sequences laid end to end: each starts at position 0 and
        sees nothing of the others. It goes with neither a cache nor ``mtp``. ``shared`` then says how many of its first
        tokens each sequence leaves out because they are those of the last sequence before it that leaves out none; it
        goes on from these, as if they were its own. ``lengths`` count what is laid.
        ``drop_exempt_B`` marks sequences whose tokens no expert may drop; without it nothing is dropped.
        ``routing_seeds_B`` (int64) is what routers draw from while training, one a sequence; without it they draw
        nothing. ``routed_experts_BTLK`` (integers) sends each token to these experts, as ``chosen_experts`` gives
        them; where a layer's are not all known (-1), its router chooses. MTP modules always choose for themselves.
        ``checkpoint_activations`` recomputes each layer in the backward pass. ``mtp`` also runs the MTP modules,
        which need the whole sequence and thus no cache.

        Raises:
            ContextError: more tokens than the model's or the cache's context.
            SpecError: not as many rows of ``features_ND`` as image tokens, or ``lengths`` or routes that do not fit.
        """
        if lengths is not None:
            _check_lengths(lengths, tokens_BT, shared, alone=cache is None and not mtp)
        placed_BT = None if features_ND is None else self._places(tokens_BT, features_ND)
        context = self._context(tokens_BT, cache, form, lengths, shared)
        routes = self._routes(tokens_BT, routed_experts_BTLK)
        guide = self._routing_context(tokens_BT, drop_exempt_B, routing_seeds_B, replay=bool(routes))
        x_BTD = self.embed_tokens(tokens_BT)
        if features_ND is not None and placed_BT is not None:
            x_BTD = x_BTD.masked_scatter(placed_BT[..., None], features_ND.to(x_BTD.dtype))
        routing: list[Routing] = []
        for index, layer in enumerate(self.layers):
            store = cache.layers[index] if cache is not None else None
            guided = guide.at(index, routes.get(index)) if guide is not None else None
            if checkpoint_activations:
                x_BTD, routed = checkpoint(
                    layer, x_BTD, context, store, guided, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x_BTD, routed = layer(x_BTD, context, store, guided)
            if routed is not None:
                routing.append(routed)
        hidden_BTD = self.norm(x_BTD)
        further: tuple[Tensor, ...] = ()
        if mtp and self.mtp:
            further = self._forward_mtp_modules(tokens_BT, hidden_BTD, guide, routing)
        return DecoderOutput(hidden_BTD, tuple(routing), further)

    def forward_mtp(self, tokens_BT: Tensor, previous_BTD: Tensor, cache: KeyValueCache) -> Tensor:
        """Run the first MTP module, after what the cache holds of it; returns normalised (B, T, D).

        ``previous_BTD`` are the hidden states of the tokens before ``tokens_BT``, from which these were drawn. Fed to
        ``logits``, the result predicts the token after each: as ``mtp_hidden[0]`` does, one position later. It may
        take the place of the hidden state that the next token is paired with, to look one token further.
        """
        context = self._context(tokens_BT, cache, "auto")
        guide = RoutingContext(tokens_BT=tokens_BT) if self.uses_hash_routing else None
        hidden_BTD, _ = self.mtp[0](self.embed_tokens(tokens_BT), previous_BTD, context, guide, cache.layers[0])
        return hidden_BTD  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Project hidden states (..., D) to the vocabulary, float32 (..., V)."""
        logits: Tensor = F.linear(hidden, self.head_weight) if self.lm_head is None else self.lm_head(hidden)
        return logits.float()

    def _places(self, tokens_BT: Tensor, features_ND: Tensor) -> Tensor:
        """Say where image tokens stand, (B, T)."""
        vision, width = self.spec.vision, self.spec.hidden_size
        if vision is None:
            raise SpecError("features_ND", f"{self.spec.name} has no vision towers", "leave features out")
        if features_ND.dim() != 2 or features_ND.shape[1] != width:
            problem = f"is {tuple(features_ND.shape)} instead of (N, {width})"
            raise SpecError("features_ND", problem, "flatten the towers' output over images and tokens")
        placed_BT = tokens_BT == vision.image_token_id
        places = int(placed_BT.sum())
        if places != len(features_ND):
            raise SpecError(
                "features_ND",
                f"has {len(features_ND)} rows for {places} image tokens ({vision.image_token_id}) in the text",
                f"place {vision.tokens_per_image} image tokens for each image",
            )
        return placed_BT

    def _context(
        self,
        tokens_BT: Tensor,
        cache: KeyValueCache | None,
        form: LatentForm,
        lengths: Sequence[int] | None = None,
        shared: Sequence[int] | None = None,
    ) -> AttentionContext:
        tokens, limit = tokens_BT.shape[1], self.spec.max_position_embeddings
        if cache is not None:
            reach = cache.reach(tokens)
        else:
            reach = max(map(sum, zip(lengths, shared or repeat(0), strict=False))) if lengths else tokens
        if reach > limit:
            raise ContextError(
                f"tokens: {reach} exceed the model's context of {limit}; shorten the text or stretch the "
                "context with YaRN (rope.scaling)"
            )
        if cache is not None:
            span = cache.advance(tokens)
        elif lengths is not None:
            span = packed_metadata(lengths, self.window, tokens_BT.device, shared)
        else:
            span = causal_metadata(tokens, self.window, tokens_BT.device)
        return AttentionContext(span, self.rope.table(span.positions_BT), self.rope.layout, form)

    def _routes(self, tokens_BT: Tensor, routed_experts_BTLK: Tensor | None) -> dict[int, Tensor]:
        """Return the forced experts (B, T, K) of each mixture of experts by its layer's index."""
        if routed_experts_BTLK is None:
            return {}
        moe, name = self.spec.moe, "routed_experts_BTLK"
        if moe is None or not self.spec.num_moe_layers:
            raise SpecError(name, f"{self.spec.name} has no mixture of experts", "leave routes out")
        shape = (*tokens_BT.shape, self.spec.num_moe_layers, moe.num_experts_per_tok)
        if tuple(routed_experts_BTLK.shape) != shape or routed_experts_BTLK.is_floating_point():
            given = f"{routed_experts_BTLK.dtype} of shape {tuple(routed_experts_BTLK.shape)}"
            problem = f"is {given} instead of integers of shape {shape}"
            raise SpecError(name, problem, "give what this model recorded for these tokens")
        if int(routed_experts_BTLK.max()) >= moe.n_routed_experts:
            problem = f"names expert {int(routed_experts_BTLK.max())} of {moe.n_routed_experts}, which count from 0"
            raise SpecError(name, problem, "give what this model recorded for these tokens")
        layers = [index for index in range(len(self.layers)) if self.spec.is_moe_layer(index)]
        return dict(zip(layers, routed_experts_BTLK.to(tokens_BT.device, torch.int64).unbind(2), strict=True))

    def _routing_context(
        self, tokens_BT: Tensor, exempt_B: Tensor | None, seeds_B: Tensor | None, *, replay: bool
    ) -> RoutingContext | None:
        if exempt_B is None and seeds_B is None and not self.uses_hash_routing and not replay:
            return None
        return RoutingContext(exempt_B, seeds_B, tokens_BT if self.uses_hash_routing else None)

    def _forward_mtp_modules(
        self, tokens_BT: Tensor, hidden_BTD: Tensor, guide: RoutingContext | None, routing: list[Routing]
    ) -> tuple[Tensor, ...]:
        further: list[Tensor] = []
        previous_BTD = hidden_BTD
        for module in self.mtp:
            depth = len(further) + 1
            if tokens_BT.shape[1] <= depth:
                break
            later_BT = tokens_BT[:, depth:]
            previous_BTD = previous_BTD[:, : later_BT.shape[1]]
            context = self._context(later_BT, None, "expanded")
            guided = None
            if guide is not None:
                ids_BT = later_BT if self.uses_hash_routing else None
                guided = replace(guide, tokens_BT=ids_BT).at(len(self.layers) + depth)
            previous_BTD, routed = module(self.embed_tokens(later_BT), previous_BTD, context, guided)
            if routed is not None:
                routing.append(routed)
            further.append(previous_BTD)
        return tuple(further)


def _check_lengths(lengths: Sequence[int], tokens_BT: Tensor, shared: Sequence[int] | None, *, alone: bool) -> None:
    batch, tokens = tokens_BT.shape
    if not alone:
        raise SpecError("lengths", "go with neither a cache nor mtp", "leave one of them out")
    if batch != 1 or sum(lengths) != tokens or min(lengths, default=0) < 1:
        problem = f"{len(lengths)} sequences of {sum(lengths)} tokens do not make tokens of shape ({batch}, {tokens})"
        raise SpecError("lengths", problem, "lay the sequences end to end as (1, N), none of them empty")
    if shared is None:
        return
    if len(shared) != len(lengths):
        problem = f"has {len(shared)} numbers for {len(lengths)} sequences"
        raise SpecError("shared", problem, "give one a sequence, 0 where it is laid whole")
    base = 0
    for length, first in zip(lengths, shared, strict=True):
        base = base if first else length
        if not 0 <= first <= base:
            problem = f"{first} tokens are left out, the last sequence laid whole before them has {base}"
            raise SpecError("shared", problem, "leave out the beginning of that sequence, or nothing")


def initialize(model: Decoder, seed: int) -> None:
    """Draw every matrix from N(0, initializer_range^2) and set norms to one, biases to zero (V2 §3.1.2).

    Vision towers come last, so that the language model is drawn as it would be without them.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if name.endswith(("bias", "alpha")):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                drawn = torch.empty(parameter.shape).normal_(0.0, model.spec.initializer_range, generator=generator)
                parameter.copy_(drawn)
