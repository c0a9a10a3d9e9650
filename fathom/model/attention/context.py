"""The attention inputs that all layers of a forward pass share: positions, masks and rotary tables.

X = H U, Y sequences and one; b and t are the sequences and tokens of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fathom import kernels
from fathom.model.cache import AttentionGroup, AttentionMetadata
from fathom.model.rope import RopeTable
from fathom.spec.rope import RopeLayout

LatentForm = Literal["auto", "expanded", "absorbed"]


@dataclass(frozen=True, slots=True)
class AttentionContext:
    """Metadata and rotary tables of a forward pass; ``form`` chooses how latent attention is computed."""

    metadata: AttentionMetadata
    rope: RopeTable
    layout: RopeLayout
    form: LatentForm = "auto"

    @property
    def is_plain(self) -> bool:
        """Whether all sequences attend in one call, each token to all up to itself: no packing, mask or prefix."""
        first, *others = self.metadata.groups
        plain = first.rows is None and first.prefix is None and first.mask_BTS is None
        return plain and first.causal and not others

    def attend(self, q_BTHW: Tensor, k_BTGW: Tensor, v_BTGU: Tensor, scale: float) -> Tensor:
        """Attend without a cache, within each group and to its shared prefix; returns (B, T, H U)."""
        groups, spans = self.metadata.groups, self.metadata.spans
        if spans is not None and kernels.takes_packed_attention(q_BTHW.flatten(0, 1)):
            ends_Y = spans.ends_of(q_BTHW.shape[0], q_BTHW.device)
            out_NHU = kernels.packed_attention(
                *(x.flatten(0, 1) for x in (q_BTHW, k_BTGW, v_BTGU)),
                ends_Y=ends_Y,
                longest=spans.longest,
                window=spans.window,
                scale=scale,
            )
            return out_NHU.flatten(1).view(*q_BTHW.shape[:2], -1)
        if groups[0].rows is None:
            return _attended(groups[0], (q_BTHW, k_BTGW, v_BTGU), (), scale)
        # Split all groups at once: the gradient is then one copy, not a sum over groups of tensors full of zeros.
        sizes = [group.rows.stop - group.rows.start for group in groups if group.rows is not None]
        split = zip(*(x[0].split_with_sizes(sizes) for x in (q_BTHW, k_BTGW, v_BTGU)), strict=True)
        outputs, base, complete = [], 0, (q_BTHW, k_BTGW, v_BTGU)
        for group, rows in zip(groups, split, strict=True):
            assert group.rows is not None
            first: tuple[Tensor, ...] = ()
            if group.prefix is None:
                base, complete = group.rows.start, rows
            else:
                own = slice(group.prefix.start - base, group.prefix.stop - base)
                first = tuple(x[None, own].transpose(1, 2) for x in complete[1:])
            each = [x.view(-1, group.tokens, *x.shape[1:]) for x in rows]
            outputs.append(_attended(group, each, first, scale))
        return self.concatenate(outputs)

    def concatenate(self, outputs: Sequence[Tensor]) -> Tensor:
        """Concatenate the groups' outputs, each (b, t, X), to (B, T, X)."""
        if self.metadata.groups[0].rows is None:
            return outputs[0]
        return torch.cat([output.flatten(0, 1) for output in outputs])[None]


def _attended(group: AttentionGroup, own: Sequence[Tensor], first: Sequence[Tensor], scale: float) -> Tensor:
    """Return a group's output (b, t, H U) from its queries, keys and values (b, t, ...) and those of the prefix."""
    q_BHTW, k_BGTW, v_BGTU = (x.transpose(1, 2) for x in own)
    if group.prefix is None:
        out_BHTU = kernels.attention(
            q_BHTW, k_BGTW, v_BGTU, mask_B1TS=group.mask_B1TS, causal=group.causal, scale=scale
        )
    else:
        out_BHTU = kernels.shared_prefix_attention(q_BHTW, k_BGTW, v_BGTU, *first, mask_1TS=group.mask_BTS, scale=scale)
    return out_BHTU.transpose(1, 2).flatten(2)
