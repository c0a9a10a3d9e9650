"""Many sequences through a model in few passes, without gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fathom.model.decoder import Decoder
from fathom.model.eval_mode import eval_mode
from fathom.model.forward_options import PackedSequences

PASS_TOKENS = 8192


def batched_hidden_states(
    model: Decoder, sequences: Sequence[Tensor], *, tokens: int = PASS_TOKENS, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield which sequences a pass holds and their packed hidden states (N, D); none attends to another.

    A pass holds at most ``tokens`` tokens, or one longer sequence, and sequences of like length, so that they attend
    together. ``dtype`` is what products are computed in. The model is in evaluation mode until the iterator ends.
    """
    device = model.device
    with eval_mode(model):
        for indices in _passes([len(sequence) for sequence in sequences], tokens):
            laid_1N = torch.cat([sequences[index] for index in indices]).to(device)[None]
            packed = PackedSequences(tuple(len(sequences[index]) for index in indices))
            with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                hidden_ND = model(laid_1N, packed=packed).hidden_BTD[0]
            yield indices, hidden_ND


def _passes(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    held: list[int] = []
    size = 0
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if held and size + lengths[index] > tokens:
            yield held
            held, size = [], 0
        held.append(index)
        size += lengths[index]
    if held:
        yield held
