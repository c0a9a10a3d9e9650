"""Tensor names of GGUF: a bijection between Fathom's parameters and llama.cpp's tensors.

llama.cpp stores gate and up apart, experts stacked, and MLA's up-projection as two tensors, keys transposed for its
absorbed form. Where it rotates neighbouring columns (every architecture but qwen2), rows of queries and keys are stored
in that order, whatever the spec's layout is.

X = P + U.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fathom.checkpoint.allocation import empty_cpu_tensor
from fathom.checkpoint.gguf.keys import architecture
from fathom.checkpoint.gguf.rope import ROPE_FACTORS
from fathom.checkpoint.names import joined_shape
from fathom.errors import CheckpointError
from fathom.model.build import Shape, parameter_shapes
from fathom.spec import GroupedQueryAttention, LatentAttention, ModelSpec
from fathom.spec.rope import RopeLayout

Lookup = Callable[[str], Tensor]
SplitMode = Literal["rows", "expert_rows", "experts", "latent"]

_LISTED = 5
_OUTSIDE = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "mlp.gate_up_proj": "ffn_gate|ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_up_proj": "ffn_gate_exps|ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_experts.gate_up_proj": "ffn_gate_shexp|ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "enorm": "nextn.enorm",
    "hnorm": "nextn.hnorm",
    "eh_proj": "nextn.eh_proj",
    "norm": "nextn.shared_head_norm",
}
_IGNORED = ("attn_rot_embd.weight", "nextn.embed_tokens.weight", "nextn.shared_head_head.weight")
"""Tensors within a layer that repeat others or can be computed."""


@dataclass(frozen=True, slots=True)
class RotaryPermutation:
    """Of each of ``heads`` heads, the last ``rotated`` rows hold column pairs in another order than the parameter."""

    heads: int
    rotated: int
    layout: RopeLayout

    def order(self, rows: int) -> Tensor:
        """Return the parameter's row of each stored row."""
        width = rows // self.heads
        kept, own = width - self.rotated, torch.arange(self.rotated)
        pairs = own.view(2, -1).T if self.layout == "half" else own.view(-1, 2).T
        head = torch.cat((torch.arange(kept), pairs.flatten() + kept))
        return (head + width * torch.arange(self.heads)[:, None]).flatten()


@dataclass(frozen=True, slots=True)
class GGUFRule:
    """The parameter ``param_name`` of ``shape`` is the stored tensors ``shapes``, cut out of it as ``cut`` says.

    ``rows`` are concatenated along the parameter's first dimension and ``expert_rows`` along its second, both with gate
    and up joined (``joined_shape``); ``experts`` are concatenated expert by expert (Mixtral's files of 2023);
    ``latent`` are kv_b_proj's keys (H, C, P) and values (H, U, C).
    """

    param_name: str
    shape: Shape
    shapes: Mapping[str, Shape]
    cut: SplitMode = "rows"
    rotary: RotaryPermutation | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The stored names, in order."""
        return tuple(self.shapes)

    def split(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield stored names with their tensors: views of the parameter, except where rows are permuted."""
        if self.rotary is not None:
            tensor = tensor.index_select(0, self.rotary.order(self.shape[0]))
        yield from zip(self.shapes, self._places(tensor), strict=True)

    def assemble(self, lookup: Lookup) -> Tensor:
        """Build the parameter; at most one stored tensor is held beside it. A single one is returned as it is.

        Stored tensors of different types are promoted to a common one.
        """
        return self.assemble_rows(lookup).reshape(self.shape)

    def assemble_rows(self, lookup: Lookup) -> Tensor:
        """Build the parameter as rows of what ``lookup`` returns, with gate and up joined.

        Except of ``latent`` ones rows may be as long as they are: blocks of a type are put together as numbers are.
        """
        if len(self.shapes) == 1 and self.cut == "rows":
            whole = lookup(self.names[0])
        else:
            whole = self._filled(lookup)
        if self.rotary is not None:
            whole = _select_rows(whole, self.rotary.order(self.shape[0]).argsort())
        return whole

    def _filled(self, lookup: Lookup) -> Tensor:
        whole: Tensor | None = None
        for number, name in enumerate(self.names):
            part = lookup(name)
            if whole is None:
                joined = joined_shape(self.param_name, self.shape)
                as_it_is = self.cut == "latent" or len(joined) == 1
                whole = empty_cpu_tensor(joined if as_it_is else (*joined[:-1], part.shape[-1]), part.dtype)
            elif whole.dtype != part.dtype:
                whole = whole.to(torch.promote_types(whole.dtype, part.dtype))
            _copy(part, next(islice(self._places(whole), number, None)))
        if whole is None:
            raise CheckpointError(f"{self.param_name}: has no stored tensors; give the model at least one expert")
        return whole

    def _places(self, tensor: Tensor) -> Iterator[Tensor]:
        """Yield the view of the parameter that each stored tensor fills."""
        joined = joined_shape(self.param_name, self.shape)
        count, tensor = len(self.shapes), tensor.reshape(*joined[:-1], -1)
        if self.cut == "rows":
            yield from tensor.chunk(count)
        elif self.cut == "expert_rows":
            yield from tensor.chunk(count, 1)
        elif self.cut == "experts":
            for slab in tensor:
                yield from slab.chunk(count // len(tensor))
        else:
            heads, rank, width = next(iter(self.shapes.values()))
            per_head_HXC = tensor.view(heads, -1, rank)
            yield per_head_HXC[:, :width].transpose(1, 2)
            yield per_head_HXC[:, width:]


def _copy(source: Tensor, target: Tensor) -> None:
    """Copy numbers, or blocks on this thread: waking torch's others takes longer than most tensors of blocks."""
    if source.dtype == torch.uint8:
        np.copyto(target.numpy(), source.numpy())
    else:
        target.copy_(source)


def _select_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Return rows in another order, of blocks as ``_copy`` does."""
    return (
        torch.from_numpy(tensor.numpy()[rows.numpy()]) if tensor.dtype == torch.uint8 else tensor.index_select(0, rows)
    )


def gguf_rules(spec: ModelSpec, found: Collection[str] = ()) -> tuple[GGUFRule, ...]:
    """One rule per parameter, in the order of the state dict.

    Without ``found`` they say what is written. With the names a file holds, they say how to read it: MLA's
    up-projection as one tensor (before 2025), experts as tensors of their own (2023), and gate and up as one (an option
    of 2026).
    """
    return tuple(
        _rule(spec, param_name, shape, frozenset(found)) for param_name, shape in parameter_shapes(spec).items()
    )


def check(spec: ModelSpec, shapes: Mapping[str, Shape]) -> tuple[GGUFRule, ...]:
    """Return the rules that read a file of tensors of these shapes.

    Raises:
        CheckpointError: lists all missing, unexpected and wrongly shaped tensors at once.
    """
    rules = gguf_rules(spec, shapes.keys())
    needed = {name: shape for rule in rules for name, shape in rule.shapes.items()}
    missing = [name for name in needed if name not in shapes]
    unexpected = [name for name in shapes if name not in needed and not _ignored(name, needed)]
    wrong = [
        f"{name} is {_size(shapes[name])} instead of {_size(shape)}"
        for name, shape in needed.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
    faults = ", ".join(f"{len(names)} {kind} ({_abbreviated(names)})" for kind, names in kinds if names)
    if faults:
        raise CheckpointError(f"the tensors do not fit the metadata: {faults}; get the file again or convert it anew")
    return rules


def _ignored(name: str, needed: Mapping[str, Shape]) -> bool:
    """Whether a tensor repeats others or can be computed; split keys and values do where the whole is there too."""
    inner = name.split(".", 2)[-1]
    repeats = inner in ("attn_k_b.weight", "attn_v_b.weight") and name[: -len(inner)] + "attn_kv_b.weight" in needed
    return repeats or name == ROPE_FACTORS or inner in _IGNORED


def _rule(spec: ModelSpec, param_name: str, shape: Shape, found: frozenset[str]) -> GGUFRule:
    if param_name in _OUTSIDE:
        return GGUFRule(param_name, shape, {_OUTSIDE[param_name]: shape})
    part, number, inner = param_name.split(".", 2)
    layer = int(number) + (0 if part == "layers" else spec.num_hidden_layers)
    inner = inner.removeprefix("block.")
    prefix = f"blk.{layer}"
    if inner == "mlp.gate.e_score_correction_bias":
        return GGUFRule(param_name, shape, {f"{prefix}.exp_probs_b.bias": shape})
    stem, suffix = (inner, "weight") if inner.startswith("mlp.experts.") else inner.rsplit(".", 1)
    if stem not in _LAYER:
        raise CheckpointError(f"{param_name}: has no name in GGUF; choose another format to write")
    names = [f"{prefix}.{name}.{suffix}" for name in _LAYER[stem].split("|")]
    if stem.startswith("mlp.experts."):
        return _experts(param_name, shape, names, found)
    if stem == "self_attn.kv_b_proj":
        return _latent(spec, param_name, shape, names[0], found)
    height, *columns = joined_shape(param_name, shape)
    rows = (height // len(names), *columns)
    return GGUFRule(param_name, shape, dict.fromkeys(names, rows), rotary=_rotary(spec, stem))


def _experts(param_name: str, shape: Shape, names: list[str], found: frozenset[str]) -> GGUFRule:
    """Gate and up as two stacks (what is written), as one, or expert by expert."""
    joined = joined_shape(param_name, shape)
    experts, rows, columns = joined[0], joined[1] // len(names), joined[2]
    fused = names[0].replace("ffn_gate_exps", "ffn_gate_up_exps")
    if len(names) == 2 and fused in found:
        return GGUFRule(param_name, shape, {fused: joined})
    single = [name.replace("_exps.", ".{}.") for name in names]
    if single[0].format(0) in found and experts <= len(found):
        alone = {name.format(expert): (rows, columns) for expert in range(experts) for name in single}
        return GGUFRule(param_name, shape, alone, cut="experts")
    return GGUFRule(param_name, shape, dict.fromkeys(names, (experts, rows, columns)), cut="expert_rows")


def _latent(spec: ModelSpec, param_name: str, shape: Shape, name: str, found: frozenset[str]) -> GGUFRule:
    """MLA's up-projection: keys transposed and values, or whole in files from before 2025."""
    attention = spec.attention
    if name in found or not isinstance(attention, LatentAttention):
        return GGUFRule(param_name, shape, {name: shape})
    heads, rank = attention.num_heads, attention.kv_lora_rank
    parts = {
        name.replace("attn_kv_b", "attn_k_b"): (heads, rank, attention.qk_nope_head_dim),
        name.replace("attn_kv_b", "attn_v_b"): (heads, attention.v_head_dim, rank),
    }
    return GGUFRule(param_name, shape, parts, cut="latent")


def _rotary(spec: ModelSpec, stem: str) -> RotaryPermutation | None:
    """Return the permutation of rows, or None where llama.cpp pairs columns as the spec's layout does."""
    stored: RopeLayout = "half" if architecture(spec) == "qwen2" else "interleaved"
    attention, layout = spec.attention, spec.rope.layout
    if layout == stored:
        return None
    if isinstance(attention, GroupedQueryAttention):
        heads = {"self_attn.q_proj": attention.num_heads, "self_attn.k_proj": attention.num_kv_heads}
    else:
        queries = "self_attn.q_proj" if attention.q_lora_rank is None else "self_attn.q_b_proj"
        heads = {queries: attention.num_heads, "self_attn.kv_a_proj_with_mqa": 1}
    return RotaryPermutation(heads[stem], attention.rope_dim, layout) if stem in heads else None


def _size(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _abbreviated(names: list[str]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
