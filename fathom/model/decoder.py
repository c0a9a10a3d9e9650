"""The decoder: one forward for training, prefill and decoding, of every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fathom.errors import ContextError, SpecError
from fathom.model.adapters.adaptation import Adaptation
from fathom.model.attention import AttentionContext, LatentForm
from fathom.model.cache import KeyValueCache, causal_metadata, packed_metadata
from fathom.model.decoder_layer import DecoderLayer
from fathom.model.device import to_device
from fathom.model.forward_options import PackedSequences, RoutingOptions
from fathom.model.head import OutputHead
from fathom.model.moe import Routing, RoutingContext
from fathom.model.mtp import MultiTokenPrediction
from fathom.model.norm import RMSNorm
from fathom.model.quantized import QuantizedEmbedding, QuantizedLinear
from fathom.model.rope import Rope
from fathom.model.vision import VisionTowers
from fathom.spec import GroupedQueryAttention, ModelSpec

H = TypeVar("H", bound=Tensor | tuple[Tensor, ...])
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DecoderOutput:
    """The result of a forward pass.

    ``hidden_BTD`` is after the final norm. ``routing`` has one entry per mixture-of-experts layer, MTP modules last.
    ``mtp_hidden[k - 1]`` is (B, T - k, D); its position i predicts token i + k + 1.
    """

    hidden_BTD: Tensor
    routing: tuple[Routing, ...]
    mtp_hidden: tuple[Tensor, ...] = ()


class Decoder(nn.Module):
    """A pre-norm transformer decoder made from a spec; ``adaptation`` is set where an adapter of it is trained."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.adaptation: Adaptation | None = None
        self.embed_tokens: nn.Embedding | QuantizedEmbedding = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(spec, moe=spec.is_moe_layer(i)) for i in range(spec.num_hidden_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        tied = self.embed_tokens if spec.tie_word_embeddings else None
        self.lm_head: OutputHead | QuantizedLinear = OutputHead(spec.hidden_size, spec.vocab_size, tied)
        self.mtp = nn.ModuleList(MultiTokenPrediction(spec) for _ in range(spec.num_nextn_predict_layers))
        self.vision = None if spec.vision is None else VisionTowers(spec.vision, spec.hidden_size)
        self.rope = Rope(spec.rope, spec.attention.rope_dim)
        attention = spec.attention
        self.window = attention.sliding_window if isinstance(attention, GroupedQueryAttention) else None
        self.uses_hash_routing = spec.moe is not None and spec.moe.router.score == "hash"

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self._some_norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the activations: that of all weights but routers' and quantized ones."""
        return self._some_norm.weight.dtype

    @property
    def _some_norm(self) -> RMSNorm:
        """A norm that is here: a stage of a pipeline may hold layers alone."""
        return next(module for module in self.modules() if isinstance(module, RMSNorm))

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        cache: KeyValueCache | None = None,
        packed: PackedSequences | None = None,
        features_ND: Tensor | None = None,
        routing: RoutingOptions | None = None,
        checkpoint_activations: bool = False,
        mtp: bool = False,
        form: LatentForm = "auto",
    ) -> DecoderOutput:
        """Compute the hidden states of ``tokens_BT`` (int64): ``embed``, all of ``run_layers``, the final norm.

        ``cache`` holds the keys and values of earlier tokens and receives those of the new ones. ``packed`` says that
        ``tokens_BT`` is (1, N), sequences packed without padding; it goes with neither ``cache`` nor ``mtp``.
        ``features_ND`` are embeddings of image tokens, see ``embed``. ``checkpoint_activations`` recomputes each layer
        in the backward pass. ``mtp`` also runs the MTP modules, which need whole sequences and thus no cache. ``form``
        chooses how latent attention is computed.

        Raises:
            ContextError: more tokens than the model's or the cache's context.
            SpecError: ``features_ND``, ``packed`` or ``routing`` do not fit the tokens.
        """
        if mtp and packed is not None:
            raise SpecError("packed", "goes with neither a cache nor mtp", "leave one of them out")
        self._check_length(tokens_BT.shape, cache, packed)
        x_BTD = self.embed(tokens_BT, features_ND)
        x_BTD, routed = self.run_layers(
            x_BTD,
            tokens_BT=tokens_BT,
            cache=cache,
            packed=packed,
            routing=routing,
            checkpoint_activations=checkpoint_activations,
            form=form,
        )
        return self.finish(x_BTD, routed, tokens_BT, routing=routing, mtp=mtp)

    def finish(
        self,
        x_BTD: Tensor,
        routed: tuple[Routing, ...],
        tokens_BT: Tensor,
        *,
        routing: RoutingOptions | None = None,
        mtp: bool = False,
    ) -> DecoderOutput:
        """Normalise what the last layer made and run the MTP modules: the end of ``forward``."""
        hidden_BTD = self.norm(x_BTD)
        if not mtp or not self.mtp:
            return DecoderOutput(hidden_BTD, routed)
        mtp_hidden, mtp_routed = self._forward_mtp_modules(tokens_BT, hidden_BTD, routing)
        return DecoderOutput(hidden_BTD, routed + mtp_routed, mtp_hidden)

    def embed(self, tokens_BT: Tensor, features_ND: Tensor | None = None) -> Tensor:
        """Look tokens up in the embedding, (B, T, D); image tokens take rows of ``features_ND`` instead.

        ``features_ND`` are made by ``vision``: row n replaces the n-th ``image_token_id`` of ``tokens_BT``, counted
        along each sequence and then from sequence to sequence.

        Raises:
            SpecError: not as many rows of ``features_ND`` as image tokens, or a model without vision towers.
        """
        if features_ND is None:
            return self.embed_tokens(tokens_BT)  # type: ignore[no-any-return]
        image_BT = self._image_positions(tokens_BT, features_ND)
        x_BTD: Tensor = self.embed_tokens(tokens_BT)
        features_ND = features_ND.to(x_BTD.dtype)
        if x_BTD.device.type == "cpu":
            return x_BTD.masked_scatter(image_BT[..., None], features_ND)
        # The gradient of a masked scatter has as many rows as the mask says; a row looked up for every token has not.
        row_BT = (image_BT.flatten().cumsum(0) - 1).clamp(0, len(features_ND) - 1).view_as(image_BT)
        return torch.where(image_BT[..., None], features_ND[row_BT], x_BTD)

    def run_layers(
        self,
        x_BTD: Tensor,
        *,
        layers: range | None = None,
        tokens_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        packed: PackedSequences | None = None,
        routing: RoutingOptions | None = None,
        checkpoint_activations: bool = False,
        form: LatentForm = "auto",
    ) -> tuple[Tensor, tuple[Routing, ...]]:
        """Run consecutive decoder layers, all by default; return the residual stream and the layers' routing.

        With ``layers`` a pipeline stage runs its part of the model, counted from 0 over the whole model; ``cache`` then
        has the layers of this part alone. ``tokens_BT`` are the token ids, which only hash routing reads.

        Raises:
            ContextError: more tokens than the model's or the cache's context.
            SpecError: ``packed`` or ``routing`` do not fit the tokens.
        """
        self._check_length(x_BTD.shape, cache, packed)
        replayed = self._replayed_experts(x_BTD, routing)
        context = self._context(x_BTD, cache, packed, form)
        routing_context = self._routing_context(routing, tokens_BT, replay=bool(replayed))
        routings: list[Routing] = []
        for place, index in enumerate(range(len(self.layers)) if layers is None else layers):
            layer_cache = cache.layers[place] if cache is not None else None
            layer_routing = routing_context.at(index, replayed.get(index)) if routing_context is not None else None
            layer = self.layers[index]
            if checkpoint_activations:
                x_BTD, routed = checkpoint(
                    layer, x_BTD, context, layer_cache, layer_routing, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x_BTD, routed = layer(x_BTD, context, layer_cache, layer_routing)
            if routed is not None:
                routings.append(routed)
        return x_BTD, tuple(routings)

    def forward_mtp(self, tokens_BT: Tensor, previous_BTD: Tensor, cache: KeyValueCache) -> Tensor:
        """Run the first MTP module with its cache, for speculative decoding; returns normalised (B, T, D).

        ``previous_BTD`` are the hidden states from which ``tokens_BT`` were sampled. ``logits`` of the result predict
        the token after each, as ``mtp_hidden[0]`` does one position later. The result may serve as the hidden state
        that is paired with the next token, to draft one token further.
        """
        self._check_length(tokens_BT.shape, cache, None)
        context = self._context(previous_BTD, cache, None, "auto")
        routing_context = self._routing_context(None, tokens_BT, replay=False)
        hidden_BTD, _ = self.mtp[0](
            self.embed_tokens(tokens_BT), previous_BTD, context, routing_context, cache.layers[0]
        )
        return hidden_BTD  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Project hidden states (..., D) to the vocabulary, float32 (..., V)."""
        logits: Tensor = self.lm_head(hidden)
        return logits.float()

    def apply_head(self, hidden: H, function: Callable[[H, Tensor], T]) -> T:
        """Return ``function`` of hidden states (..., D), or a tuple of them, and the output projection (V, D).

        Losses that compute logits in chunks take this way: the projection is read in a call of the head. ``function``
        returns a tensor or a tuple that holds what has a gradient. Weights in 8 or 4 bits have no such projection.
        """
        result: T = self.lm_head(hidden, function)
        return result

    def _image_positions(self, tokens_BT: Tensor, features_ND: Tensor) -> Tensor:
        """Return where image tokens are, bool (B, T), after checking that there is a row of features for each.

        On a GPU they are not counted: the host would wait. Whoever laid out the tokens has counted them.
        """
        vision, width = self.spec.vision, self.spec.hidden_size
        if vision is None:
            raise SpecError("features_ND", f"{self.spec.name} has no vision towers", "leave features out")
        if features_ND.dim() != 2 or features_ND.shape[1] != width:
            problem = f"is {tuple(features_ND.shape)} instead of (N, {width})"
            raise SpecError("features_ND", problem, "flatten the towers' output over images and tokens")
        image_BT = tokens_BT == vision.image_token_id
        count = int(image_BT.sum()) if image_BT.device.type == "cpu" else len(features_ND)
        if count != len(features_ND):
            raise SpecError(
                "features_ND",
                f"has {len(features_ND)} rows for {count} image tokens ({vision.image_token_id}) in the text",
                f"place {vision.tokens_per_image} image tokens for each image",
            )
        return image_BT

    def _check_length(self, shape: torch.Size, cache: KeyValueCache | None, packed: PackedSequences | None) -> None:
        """Refuse packing that does not fit tokens of shape (B, T, ...), and more context than the model has."""
        batch, tokens, limit = shape[0], shape[1], self.spec.max_position_embeddings
        if packed is None:
            length = tokens if cache is None else cache.max_length_after(tokens)
        else:
            if cache is not None:
                raise SpecError("packed", "goes with neither a cache nor mtp", "leave one of them out")
            if batch != 1 or packed.num_tokens != tokens:
                given = f"{len(packed.lengths)} sequences of {packed.num_tokens} tokens"
                problem = f"{given} do not make tokens of shape ({batch}, {tokens})"
                raise SpecError("packed.lengths", problem, "pack the sequences one after another as (1, N)")
            length = packed.max_context
        if length > limit:
            raise ContextError(
                f"tokens: {length} exceed the model's context of {limit}; shorten the text or stretch the "
                "context with YaRN (rope.scaling)"
            )

    def _context(
        self, x_BTD: Tensor, cache: KeyValueCache | None, packed: PackedSequences | None, form: LatentForm
    ) -> AttentionContext:
        """Return positions, masks and rotary tables of a pass; reserves the new tokens' slots in the cache."""
        tokens, device = x_BTD.shape[1], x_BTD.device
        if cache is not None:
            metadata = cache.advance(tokens)
        elif packed is not None:
            metadata = packed_metadata(packed.lengths, self.window, device, packed.shared_prefix_lengths)
        else:
            metadata = causal_metadata(tokens, self.window, device)
        return AttentionContext(metadata, self.rope.table(metadata.positions_BT), self.rope.layout, form)

    def _replayed_experts(self, x_BTD: Tensor, routing: RoutingOptions | None) -> dict[int, Tensor]:
        """Return the replayed experts (B, T, K) of each mixture of experts by its layer's index."""
        if routing is None or routing.replayed_experts_BTLK is None:
            return {}
        experts_BTLK = routing.replayed_experts_BTLK
        moe, name = self.spec.moe, "routing.replayed_experts_BTLK"
        if moe is None or not self.spec.num_moe_layers:
            raise SpecError(name, f"{self.spec.name} has no mixture of experts", "leave replayed experts out")
        shape = (*x_BTD.shape[:2], self.spec.num_moe_layers, moe.num_experts_per_tok)
        if tuple(experts_BTLK.shape) != shape or experts_BTLK.is_floating_point():
            given = f"{experts_BTLK.dtype} of shape {tuple(experts_BTLK.shape)}"
            problem = f"is {given} instead of integers of shape {shape}"
            raise SpecError(name, problem, "give what this model recorded for these tokens")
        on_host = experts_BTLK.device.type == "cpu"  # elsewhere whoever brought them there has looked
        if on_host and int(experts_BTLK.max()) >= moe.n_routed_experts:
            problem = f"names expert {int(experts_BTLK.max())} of {moe.n_routed_experts}, which count from 0"
            raise SpecError(name, problem, "give what this model recorded for these tokens")
        layers = [index for index in range(len(self.layers)) if self.spec.is_moe_layer(index)]
        return dict(zip(layers, to_device(experts_BTLK, x_BTD.device).to(torch.int64).unbind(2), strict=True))

    def _routing_context(
        self, routing: RoutingOptions | None, tokens_BT: Tensor | None, *, replay: bool
    ) -> RoutingContext | None:
        """Return what routers see of the pass; None where the router's input decides alone."""
        options = routing if routing is not None else RoutingOptions()
        if options.drop_exempt_B is None and options.seeds_B is None and not self.uses_hash_routing and not replay:
            return None
        return RoutingContext(options.drop_exempt_B, options.seeds_B, tokens_BT if self.uses_hash_routing else None)

    def _forward_mtp_modules(
        self, tokens_BT: Tensor, hidden_BTD: Tensor, routing: RoutingOptions | None
    ) -> tuple[tuple[Tensor, ...], tuple[Routing, ...]]:
        """Run the MTP modules one after another; returns the hidden state (B, T - k, D) and the routing of each."""
        outputs: list[Tensor] = []
        routings: list[Routing] = []
        previous_BTD = hidden_BTD
        for depth, module in enumerate(self.mtp, start=1):
            if tokens_BT.shape[1] <= depth:
                break
            later_BT = tokens_BT[:, depth:]
            previous_BTD = previous_BTD[:, : later_BT.shape[1]]
            context = self._context(previous_BTD, None, None, "expanded")
            routing_context = self._routing_context(routing, later_BT, replay=False)
            layer_routing = routing_context.at(len(self.layers) + depth) if routing_context is not None else None
            previous_BTD, routed = module(self.embed_tokens(later_BT), previous_BTD, context, layer_routing)
            if routed is not None:
                routings.append(routed)
            outputs.append(previous_BTD)
        return tuple(outputs), tuple(routings)
