"""Fathom's and Hugging Face's tensor names, one to one but for experts, which are stacked here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.errors import CheckpointError
from fathom.study.switch_t5.spec import EncoderDecoderSpec

Shape = tuple[int, ...]
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Rule:
    """A parameter and the Hugging Face tensors it is made of: itself, or one per expert along the first dimension."""

    param_name: str
    hf_names: tuple[str, ...]
    shape: Shape
    stacked: bool = False

    @property
    def published_shape(self) -> Shape:
        """The shape of each published tensor."""
        return self.shape[1:] if self.stacked else self.shape


def rules(spec: EncoderDecoderSpec) -> tuple[Rule, ...]:
    """One rule per tensor of ``EncoderDecoder(spec).state_dict()``."""
    found = [Rule("shared.weight", ("shared.weight",), (spec.vocab_size, spec.d_model))]
    for stack, depth in (("encoder", spec.num_layers), ("decoder", spec.num_decoder_layers)):
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        shape = (spec.relative_attention_num_buckets, spec.num_heads)
        found.append(Rule(f"{stack}.relative_bias.weight", (bias,), shape))
        for index in range(depth):
            found += _layer(spec, stack, index)
        found.append(Rule(f"{stack}.norm.weight", (f"{stack}.final_layer_norm.weight",), (spec.d_model,)))
    if not spec.tie_word_embeddings:
        found.append(Rule("lm_head.weight", ("lm_head.weight",), (spec.vocab_size, spec.d_model)))
    return tuple(found)


def _layer(spec: EncoderDecoderSpec, stack: str, index: int) -> Iterator[Rule]:
    prefix, hf_prefix = f"{stack}.layers.{index}", f"{stack}.block.{index}.layer"
    width, inner = spec.d_model, spec.num_heads * spec.d_kv
    attentions = [("self_attn", "SelfAttention")] + ([("cross_attn", "EncDecAttention")] if stack == "decoder" else [])
    for place, (name, published) in enumerate(attentions):
        yield Rule(f"{prefix}.{name}_norm.weight", (f"{hf_prefix}.{place}.layer_norm.weight",), (width,))
        for letter in "qkvo":
            shape = (width, inner) if letter == "o" else (inner, width)
            yield Rule(f"{prefix}.{name}.{letter}.weight", (f"{hf_prefix}.{place}.{published}.{letter}.weight",), shape)
    place = len(attentions)
    yield Rule(f"{prefix}.mlp_norm.weight", (f"{hf_prefix}.{place}.layer_norm.weight",), (width,))
    mlp, moe = f"{hf_prefix}.{place}.mlp", spec.moe
    sparse = moe is not None and spec.is_sparse(index, decoder=stack == "decoder")
    if sparse and moe is not None:
        router = (moe.n_routed_experts, width)
        yield Rule(f"{prefix}.mlp.router.weight", (f"{mlp}.router.classifier.weight",), router)
    inner = moe.moe_intermediate_size if sparse and moe is not None else spec.d_ff
    for letter, shape in (("wi", (inner, width)), ("wo", (width, inner))):
        if sparse and moe is not None:
            experts = range(moe.n_routed_experts)
            names = tuple(f"{mlp}.experts.expert_{e}.{letter}.weight" for e in experts)
            yield Rule(f"{prefix}.mlp.experts.{letter}", names, (len(names), *shape), stacked=True)
        else:
            yield Rule(f"{prefix}.mlp.{letter}.weight", (f"{mlp}.{letter}.weight",), shape)


def to_hf(spec: EncoderDecoderSpec, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict under the Hugging Face names."""
    published: dict[str, Tensor] = {}
    for rule in rules(spec):
        tensor = state[rule.param_name]
        parts = tensor.unbind(0) if rule.stacked else (tensor,)
        published |= zip(rule.hf_names, parts, strict=True)
    return published


def from_hf(spec: EncoderDecoderSpec, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return Hugging Face tensors under Fathom's names; ``check_names`` checks beforehand that all are there."""
    return {
        rule.param_name: torch.stack([published[name] for name in rule.hf_names])
        if rule.stacked
        else published[rule.hf_names[0]]
        for rule in rules(spec)
    }


def copies(spec: EncoderDecoderSpec) -> dict[str, str]:
    """Published names that may repeat another tensor: the embedding, once for each stack and for a tied head."""
    stacks = {f"{stack}.embed_tokens.weight": "shared.weight" for stack in ("encoder", "decoder")}
    return stacks | ({"lm_head.weight": "shared.weight"} if spec.tie_word_embeddings else {})


def check_names(spec: EncoderDecoderSpec, shapes: Mapping[str, Shape], where: str) -> None:
    """Require exactly the tensors of the published form, copies of the embedding aside.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape; all are counted, some named.
    """
    wanted = {name: rule.published_shape for rule in rules(spec) for name in rule.hf_names}
    doubles = copies(spec)
    problems = [
        _some("missing", [name for name in wanted if name not in shapes]),
        _some("unexpected", [name for name in shapes if name not in wanted and name not in doubles]),
        _some(
            "of another shape",
            [
                f"{name} {shapes[name]} instead of {shape}"
                for name, shape in (wanted | {name: wanted[source] for name, source in doubles.items()}).items()
                if name in shapes and shapes[name] != shape
            ],
        ),
    ]
    if any(problems):
        found = "; ".join(filter(None, problems))
        raise CheckpointError(f"{where}: {found}; use the config.json that belongs to these weights")


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{len(names)} {what} ({', '.join(sorted(names)[:_MOST_NAMED])}{more})"
