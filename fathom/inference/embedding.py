"""Embeddings of texts: hidden states after the final norm, pooled over the tokens and of length 1.

A generative model was trained to predict the next token, not to place like texts near each other: its embeddings rank
texts worse than those of a model trained for that.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fathom.errors import ContextError, SpecError
from fathom.model.cache import StaticCache
from fathom.model.decoder import Decoder
from fathom.model.forward_options import PackedSequences
from fathom.spec import check
from fathom.spec.model import ModelSpec

Pooling = Literal["mean", "last"]
POOLINGS: tuple[Pooling, ...] = ("mean", "last")
STEP_TOKENS = 512


def embed(
    model: Decoder,
    sequences: Sequence[Sequence[int]],
    *,
    pooling: Pooling = "mean",
    dimensions: int | None = None,
    step_tokens: int = STEP_TOKENS,
) -> Tensor:
    """Return the embeddings of token sequences, float32 (S, D); see ``embed_in_steps``."""
    steps = embed_in_steps(model, sequences, pooling=pooling, dimensions=dimensions, step_tokens=step_tokens)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            embeddings: Tensor = end.value
            return embeddings


def embed_in_steps(
    model: Decoder,
    sequences: Sequence[Sequence[int]],
    *,
    pooling: Pooling = "mean",
    dimensions: int | None = None,
    step_tokens: int = STEP_TOKENS,
) -> Generator[None, None, Tensor]:
    """Embed token sequences by passes of at most ``step_tokens`` tokens, yielding after each; returns (S, D) float32.

    Short sequences are packed into one pass; a longer one runs alone, piece by piece over a cache of its own.
    ``pooling`` takes the mean over all tokens or the last token. ``dimensions`` keeps the first ones only, and the
    result has length 1 again.

    Raises:
        SpecError: an option or a token id that does not exist; at the first step.
        ContextError: an empty sequence, or one longer than the model's context.
    """
    check.one_of("pooling", pooling, POOLINGS)
    check.positive("step_tokens", step_tokens)
    check_dimensions(dimensions, model.spec.hidden_size)
    for index, sequence in enumerate(sequences):
        check_sequence(sequence, model.spec, f"input[{index}]")
    pooled: dict[int, Tensor] = {}
    for batch in _batches([len(sequence) for sequence in sequences], step_tokens):
        if len(batch) == 1 and len(sequences[batch[0]]) > step_tokens:
            pooled[batch[0]] = yield from _embed_long(model, sequences[batch[0]], pooling, step_tokens)
        else:
            found = _embed_packed(model, [sequences[index] for index in batch], pooling)
            pooled |= dict(zip(batch, found, strict=True))
            yield
    width = dimensions or model.spec.hidden_size
    if not pooled:
        return torch.empty(0, width)
    return normalize(torch.stack([pooled[index] for index in range(len(sequences))])[:, :width], dim=-1)


def check_dimensions(dimensions: int | None, hidden_size: int) -> None:
    """Refuse a number of dimensions that embeddings do not have."""
    if dimensions is not None and not 1 <= dimensions <= hidden_size:
        raise SpecError(
            "dimensions", f"{dimensions} is not within 1 and {hidden_size}, the model's", f"give at most {hidden_size}"
        )


def check_sequence(sequence: Sequence[int], spec: ModelSpec, name: str) -> None:
    """Refuse a sequence that cannot be embedded; ``name`` is what the message calls it.

    Raises:
        ContextError: it is empty, or longer than the context.
        SpecError: a token id is outside the vocabulary.
    """
    if not sequence:
        raise ContextError(f"{name}: has no tokens; give a text or token ids")
    if len(sequence) > spec.max_position_embeddings:
        context = spec.max_position_embeddings
        raise ContextError(f"{name}: has {len(sequence)} tokens, more than the context of {context}; shorten it")
    if max(sequence) >= spec.vocab_size or min(sequence) < 0:
        wrong = next(token for token in sequence if not 0 <= token < spec.vocab_size)
        raise SpecError(name, f"{wrong} is outside the vocabulary of {spec.vocab_size}", "use this model's tokenizer")


def _batches(lengths: Sequence[int], step_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of the sequences of each pass, in order; one longer than a pass is alone."""
    batch: list[int] = []
    tokens = 0
    for index, length in enumerate(lengths):
        if batch and tokens + length > step_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += length
    if batch:
        yield batch


@torch.inference_mode()
def _embed_packed(model: Decoder, sequences: Sequence[Sequence[int]], pooling: Pooling) -> list[Tensor]:
    device = model.device
    tokens_1N = torch.tensor([[token for sequence in sequences for token in sequence]], device=device)
    lengths = tuple(len(sequence) for sequence in sequences)
    hidden_ND = model(tokens_1N, packed=PackedSequences(lengths)).hidden_BTD[0].float()
    parts = hidden_ND.split(list(lengths))
    return [part.mean(0) if pooling == "mean" else part[-1].clone() for part in parts]


def _embed_long(
    model: Decoder, sequence: Sequence[int], pooling: Pooling, step_tokens: int
) -> Generator[None, None, Tensor]:
    total_D = torch.zeros(model.spec.hidden_size, device=model.device)
    with torch.inference_mode():
        cache = StaticCache.allocate(
            model.spec, batch_size=1, max_length=len(sequence), device=model.device, dtype=model.dtype
        )
    for start in range(0, len(sequence), step_tokens):
        tokens_1T = torch.tensor([sequence[start : start + step_tokens]], device=model.device)
        with torch.inference_mode():  # not across the yield: the caller's own work must not run in it
            hidden_TD = model(tokens_1T, cache=cache).hidden_BTD[0].float()
            total_D = total_D + hidden_TD.sum(0) if pooling == "mean" else hidden_TD[-1].clone()
        yield
    return total_D / len(sequence) if pooling == "mean" else total_D
