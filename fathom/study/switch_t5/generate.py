"""Greedy generation with a key-value cache.

B batch, S source tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.spec import check
from fathom.study.switch_t5.model import EncoderDecoder, EncoderDecoderCache


@torch.no_grad()
def generate(
    model: EncoderDecoder, source_BS: Tensor, *, max_new_tokens: int, source_mask_BS: Tensor | None = None
) -> list[list[int]]:
    """The most likely next token again and again, per sequence up to and including the end-of-sequence token.

    Each step routes one token of a sequence, which always finds a place: capacity binds in the encoder only.
    """
    check.positive("max_new_tokens", max_new_tokens)
    spec = model.spec
    encoded_BSD, _ = model.encode(source_BS, source_mask_BS=source_mask_BS)
    memory = EncoderDecoderCache.empty(spec.num_decoder_layers)
    batch = source_BS.shape[0]
    last_B1 = torch.full((batch, 1), spec.decoder_start_token_id, device=source_BS.device)
    answers: list[list[int]] = [[] for _ in range(batch)]
    open_rows = set(range(batch))
    for _ in range(max_new_tokens):
        logits_B1V, _ = model.decode(last_B1, encoded_BSD, source_mask_BS=source_mask_BS, memory=memory)
        last_B1 = logits_B1V.argmax(-1)
        for row, token in enumerate(last_B1[:, 0].tolist()):
            if row in open_rows:
                answers[row].append(token)
                if token == spec.eos_token_id:
                    open_rows.discard(row)
        if not open_rows:
            break
    return answers
