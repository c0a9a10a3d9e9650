"""Bits per byte: the cross-entropy of a text in bits, per byte of UTF-8; comparable across tokenizers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.errors import DataError, SpecError
from fathom.model.decoder import Decoder
from fathom.model.eval_mode import eval_mode

LOGIT_ROWS = 1024
"""Rows of logits that are computed at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsPerByte:
    """Summed loss in nats over ``tokens`` predicted tokens, which decode to ``text_bytes`` bytes of UTF-8."""

    nats: float
    tokens: int
    text_bytes: int

    @property
    def value(self) -> float:
        """Bits per byte: nats / ln 2 / bytes."""
        return self.nats / math.log(2) / self.text_bytes


def bits_per_byte(
    model: Decoder, tokens_N: Tensor, *, text_bytes: int, context: int, stride: int | None = None, batch_size: int = 8
) -> BitsPerByte:
    """Score a stream of tokens (int64, N) in windows of ``context`` tokens that overlap by ``context - stride``.

    Every token but the first is scored once, and beyond the first window with at least ``context - stride`` tokens
    before it; ``stride`` is half of ``context`` if left out. ``text_bytes`` is the length of the text that
    the tokens decode to. The loss of special tokens between documents is included.

    Raises:
        SpecError: ``stride`` or ``context`` cannot be used with this model.
        DataError: fewer than two tokens, or no bytes.
    """
    stride = max(1, context // 2) if stride is None else stride
    limit = model.spec.max_position_embeddings
    if not 1 <= context <= limit:
        raise SpecError("context", f"{context} tokens, but the model has {limit}", f"choose 1 to {limit}")
    if not 1 <= stride <= context:
        raise SpecError("stride", f"{stride} with a context of {context}", f"choose 1 to {context}")
    if tokens_N.numel() < 2 or text_bytes < 1:
        raise DataError("text: too short to measure, fewer than two tokens; give more text")
    nats = 0.0
    device = model.device
    with eval_mode(model), torch.inference_mode():
        for windows_BT1, skipped in _batches(tokens_N, context, stride, batch_size):
            windows_BT1 = windows_BT1.to(device)
            hidden_BTD = model(windows_BT1[:, :-1]).hidden_BTD[:, skipped:]
            nats += _loss(model, hidden_BTD.flatten(0, 1), windows_BT1[:, 1 + skipped :].flatten())
    return BitsPerByte(nats=nats, tokens=tokens_N.numel() - 1, text_bytes=text_bytes)


def _batches(tokens_N: Tensor, context: int, stride: int, batch_size: int) -> Iterator[tuple[Tensor, int]]:
    """Yield windows (B, T + 1) and how many of their first targets were scored by an earlier window."""
    count = tokens_N.numel()
    yield tokens_N[: context + 1][None], 0
    starts = range(stride, count - 1 - (context - stride), stride)
    whole = [start for start in starts if start + context + 1 <= count]
    for at in range(0, len(whole), batch_size):
        windows = [tokens_N[start : start + context + 1] for start in whole[at : at + batch_size]]
        yield torch.stack(windows), context - stride
    for start in starts[len(whole) :]:
        yield tokens_N[start:][None], context - stride


def _loss(model: Decoder, hidden_ND: Tensor, targets_N: Tensor) -> float:
    total = 0.0
    for hidden, targets in zip(torch.split(hidden_ND, LOGIT_ROWS), torch.split(targets_N, LOGIT_ROWS), strict=True):
        total += float(F.cross_entropy(model.logits(hidden), targets, reduction="sum"))
    return total
