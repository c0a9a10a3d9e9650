"""Log-probabilities of answers under a model, computed as training computes them but without gradients. N tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from fathom.model.decoder import Decoder
from fathom.posttrain.losses import chosen_logprobs
from fathom.posttrain.rollout import Rollout, pack_rollouts, packing_order
from fathom.spec.targets import IGNORE_INDEX
from fathom.spec.train import UpdateSpec
from fathom.train.micro_batch import MicroBatch, split
from fathom.train.step import resolve_precision


def select_target_tokens(hidden_BTD: Tensor, micro: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the hidden states and targets of packed positions that have one, and the mask of these positions (N,)."""
    is_target_N = micro.targets_BT[0] != IGNORE_INDEX
    return hidden_BTD[0][is_target_N], micro.targets_BT[0][is_target_N], is_target_N


@torch.no_grad()
def rollout_logprobs(
    model: Decoder, rollouts: Sequence[Rollout], spec: UpdateSpec, *, temperature: float, micro_batch_tokens: int
) -> list[list[float]]:
    """Return the log-probability of every answer's tokens, at most ``micro_batch_tokens`` tokens a forward pass."""
    device = model.device
    order = packing_order(rollouts)
    narrow = resolve_precision(spec, device) == torch.bfloat16
    found: list[Tensor] = []
    if order:
        batch = pack_rollouts([rollouts[index] for index in order], {})
        for micro in split(batch, 1, micro_batch_tokens, device):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=narrow):
                hidden_BTD = model(micro.tokens_BT, packed=micro.packed).hidden_BTD
                hidden_ND, targets_N, _ = select_target_tokens(hidden_BTD, micro)
                logprobs = partial(
                    chosen_logprobs, targets_N=targets_N, temperature=temperature, chunk_tokens=spec.loss_chunk_tokens
                )
                found.append(model.apply_head(hidden_ND, logprobs))
    pieces = torch.cat(found).split_with_sizes([len(rollouts[index].answer_ids) for index in order]) if found else ()
    by_index = dict(zip(order, pieces, strict=True))
    return [by_index[index].tolist() for index in range(len(rollouts))]
