"""Decoder modules as structures of the native step: what it knows, and why it refuses the rest."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from fathom.kernels.native.library import Matrix
from fathom.kernels.native.matrix import PANEL_ROWS, PackedExperts, PackedMatrix
from fathom.kernels.weight_formats import ExpertStack, WeightMatrix
from fathom.model.attention import GQA, MLA
from fathom.model.decoder import Decoder
from fathom.model.decoder_layer import DecoderLayer
from fathom.model.ffn import GateUpLinear, SwiGLU
from fathom.model.head import OutputHead
from fathom.model.linear import Linear
from fathom.model.moe import Experts, LocalDispatcher, MoELayer, Router
from fathom.model.mtp import MultiTokenPrediction
from fathom.model.native import structs
from fathom.model.native.weights import PackedWeights
from fathom.model.norm import RMSNorm
from fathom.model.quantized import QuantizedExperts, QuantizedLinear, QuantizedUpProjection
from fathom.spec import Capacity, GroupLimited

M = TypeVar("M", bound=nn.Module)
S = TypeVar("S", bound=ctypes.Structure)

_DTYPES = (torch.float32, torch.bfloat16)
_SCORES = {"softmax": structs.SOFTMAX, "noisy": structs.SOFTMAX, "sigmoid": structs.SIGMOID, "hash": structs.HASH}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a model has no native step, as a clause without a full stop."""

    reason: str


class Unknown(Exception):
    """A part of a model that the native step does not know."""


def refusals(model: Decoder) -> Iterator[str]:
    """Yield what the native step does not know of a model as a whole."""
    if model.device.type != "cpu":
        yield f"the model is on {model.device.type}"
    for name, parameter in model.named_parameters():
        if not name.startswith("vision.") and parameter.dtype not in _DTYPES:
            yield f"{name} is {str(parameter.dtype).removeprefix('torch.')}"
    for name, module in model.named_modules():
        if not name.startswith("vision") and (module._forward_hooks or module._forward_pre_hooks):
            yield f"{name or 'the model'} has hooks"
        if getattr(module, "lora", None) is not None or getattr(module, "is_adapted", False):
            yield f"{name} is adapted"


class Walker:
    """Makes the structures of one decoder's modules; what they point to lies in ``weights``."""

    def __init__(self, weights: PackedWeights) -> None:
        self._weights = weights

    def norm(self, module: nn.Module) -> structs.Norm:
        """A norm."""
        known = _of_type(module, RMSNorm)
        return structs.Norm(self._weights.vector(lambda: known.weight), known.weight.numel(), known.eps)

    def linear(self, module: nn.Module) -> structs.LinearWeights:
        """A linear layer."""
        bias = self._bias(module, lambda each: each)
        if type(module) is QuantizedLinear:
            return structs.LinearWeights(self._packed(module.qweight).struct(), bias)
        known = _of_type(module, Linear)
        return structs.LinearWeights(self._weights.matrix(lambda: known.weight), bias)

    def swiglu(self, module: nn.Module) -> structs.SwiGLUWeights:
        """A dense feed-forward layer."""
        known = _of_type(module, SwiGLU)
        pair: nn.Module = known.gate_up_proj
        if type(pair) is QuantizedLinear:
            gate, up = _halves(self._packed(pair.qweight))
        else:
            plain = _of_type(pair, GateUpLinear)
            gate, up = self._weights.stack(lambda: plain.weight)
        return structs.SwiGLUWeights(
            structs.LinearWeights(gate, self._bias(pair, lambda each: each.view(2, -1)[0])),
            structs.LinearWeights(up, self._bias(pair, lambda each: each.view(2, -1)[1])),
            self.linear(known.down_proj),
        )

    def layer(self, module: nn.Module, window: int | None) -> structs.Layer:
        """A decoder layer, without its pages."""
        known = _of_type(module, DecoderLayer)
        layer = structs.Layer(
            input_norm=self.norm(known.input_layernorm),
            output_norm=self.norm(known.post_attention_layernorm),
            attention=self._attention(known.self_attn, window),
        )
        if isinstance(known.mlp, MoELayer):
            self._mixture(known.mlp, layer.feed_forward)
        else:
            layer.feed_forward.dense = self.swiglu(known.mlp)
        return layer

    def mtp(self, module: nn.Module) -> structs.Mtp:
        """A module for multi-token prediction, without its pages."""
        known = _of_type(module, MultiTokenPrediction)
        return structs.Mtp(
            embedding_norm=self.norm(known.enorm),
            hidden_norm=self.norm(known.hnorm),
            norm=self.norm(known.norm),
            projection=self.linear(known.eh_proj),
            layer=self.layer(known.block, None),
        )

    def head(self, module: nn.Module) -> Matrix:
        """The output head."""
        if type(module) is QuantizedLinear:
            return self._packed(module.qweight).struct()
        known = _of_type(module, OutputHead)
        return self._weights.matrix(lambda: known.weight_VD)

    def _attention(self, module: nn.Module, window: int | None) -> structs.AttentionWeights:
        if type(module) is MLA:
            return self._latent(module)
        known = _of_type(module, GQA)
        inputs = [self.linear(proj) for proj in (known.q_proj, known.k_proj, known.v_proj)]
        heads, kv_heads = (each.weight.rows // known.width for each in inputs[:2])
        return structs.AttentionWeights(
            kind=structs.GQA,
            heads=heads,
            kv_heads=kv_heads,
            rope=known.width,
            value=known.width,
            window=window or 0,
            scale=known.scale,
            input=(structs.LinearWeights * 3)(*inputs),
            inputs=3,
            output=self.linear(known.o_proj),
        )

    def _latent(self, module: MLA) -> structs.AttentionWeights:
        shape, output = module.shape, self.linear(module.o_proj)
        heads = output.weight.columns // shape.v_head_dim
        attention = structs.AttentionWeights(
            kind=structs.MLA,
            heads=heads,
            nope=shape.qk_nope_head_dim,
            rope=shape.qk_rope_head_dim,
            value=shape.v_head_dim,
            latent=shape.kv_lora_rank,
            scale=module.scale,
            inputs=2,
            kv_norm=self.norm(module.kv_a_layernorm),
            output=output,
        )
        if shape.q_lora_rank is None:
            attention.input[0] = self.linear(module.q_proj)
        else:
            attention.input[0] = self.linear(module.q_a_proj)
            attention.q_norm = self.norm(module.q_a_layernorm)
            attention.q_b = self.linear(module.q_b_proj)
        attention.input[1] = self.linear(module.kv_a_proj_with_mqa)
        up = module.kv_b_proj
        if type(up) is QuantizedUpProjection:
            keys, values = ([each.struct() for each in self._stacked(part)] for part in (up.keys, up.values))
        else:
            sizes, plain = [shape.qk_nope_head_dim, shape.v_head_dim], _of_type(up, Linear)

            def halves() -> tuple[Tensor, ...]:
                return plain.weight.view(heads, sum(sizes), -1).split_with_sizes(sizes, 1)

            keys = self._weights.stack(lambda: halves()[0].transpose(1, 2))
            values = self._weights.stack(lambda: halves()[1])
        attention.key_up, attention.value_up = self._array(Matrix, keys), self._array(Matrix, values)
        return attention

    def _mixture(self, module: MoELayer, feed_forward: structs.FeedForward) -> None:
        if type(module.experts.dispatcher) is not LocalDispatcher:
            raise Unknown("experts are spread over processes")
        if module.shared_experts is not None:
            feed_forward.dense = self.swiglu(module.shared_experts)
        each = [
            structs.SwiGLUWeights(*(structs.LinearWeights(matrix) for matrix in expert))
            for expert in self._experts(module.experts)
        ]
        feed_forward.router = self._router(module.gate)
        feed_forward.experts = self._array(structs.SwiGLUWeights, each)

    def _experts(self, module: nn.Module) -> list[tuple[Matrix, Matrix, Matrix]]:
        """Each expert's gate, up and down."""
        if type(module) is QuantizedExperts:
            gate_up, down = self._stacked(module.gate_up), self._stacked(module.down)
            return [(*_halves(first), last.struct()) for first, last in zip(gate_up, down, strict=True)]
        known = _of_type(module, Experts)
        pairs = self._weights.stack(lambda: known.gate_up_proj.flatten(0, 1))
        return list(zip(pairs[::2], pairs[1::2], self._weights.stack(lambda: known.down_proj), strict=True))

    def _router(self, module: nn.Module) -> structs.RouterWeights:
        known = _of_type(module, Router)
        spec, select = known.spec, known.spec.select
        router = structs.RouterWeights(
            score=_SCORES[spec.score],
            experts=known.num_experts,
            chosen=known.num_experts_per_tok,
            normalize=spec.normalize,
            scale=spec.scale,
        )
        if isinstance(select, GroupLimited):
            router.groups, router.chosen_groups = select.n_group, select.topk_group
            router.top2 = select.group_score == "top2_sum"
        if isinstance(select, Capacity) and select.eval_capacity_factor is not None:
            router.capacity = select.eval_capacity_factor
        weight, bias = known.weight, known.e_score_correction_bias
        if weight is not None:
            router.weight = self._weights.matrix(lambda: _present(known.weight))
        if bias is not None:
            router.selection_bias = self._weights.vector(lambda: _present(known.e_score_correction_bias))
        return router

    def _bias(self, module: nn.Module, part: Callable[[Tensor], Tensor]) -> int | None:
        return None if module.bias is None else self._weights.vector(lambda: part(module.bias))  # type: ignore[arg-type]

    def _packed(self, qweight: WeightMatrix) -> PackedMatrix:
        if not isinstance(qweight, PackedMatrix):
            raise Unknown("weights in PyTorch's quantized formats")
        self._weights.keep(qweight)
        return qweight

    def _stacked(self, qweight: ExpertStack) -> PackedExperts:
        if not isinstance(qweight, PackedExperts):
            raise Unknown("weights in PyTorch's quantized formats")
        self._weights.keep(qweight)
        return qweight

    def _array(self, kind: type[S], each: list[S]) -> ctypes.Array[S]:
        array = (kind * len(each))(*each)
        self._weights.keep(array)
        return array


def _halves(pair: PackedMatrix) -> tuple[Matrix, Matrix]:
    """Gate and up, which lie in one matrix one after the other."""
    if pair.rows % (2 * PANEL_ROWS):
        raise Unknown(f"a gate of {pair.rows // 2} rows, no multiple of {PANEL_ROWS}")
    gate, up = pair.struct(), pair.struct()
    gate.rows = up.rows = pair.rows // 2
    up.data = pair.data.data_ptr() + gate.rows // PANEL_ROWS * pair.panel_bytes
    return gate, up


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _of_type(module: nn.Module, known: type[M]) -> M:
    """Return the module, which must be of this very class: another's forward may compute anything."""
    if type(module) is not known:
        raise Unknown(f"{type(module).__name__} modules")
    return module
