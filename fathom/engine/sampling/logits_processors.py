"""What changes a request's logits before it draws: penalties, biases and everything that forbids tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fathom.engine.constraint import TokenConstraint, allowed_tokens
from fathom.errors import SpecError
from fathom.kernels.native.drawing import Way
from fathom.spec.sampling import SamplingParams

_HIGHEST = 3e38  # biases and penalties lift no logit beyond float32


@dataclass(slots=True, kw_only=True)
class SamplingMetadata:
    """What drawing the next token of one request needs.

    ``seed`` is the request's own, or one from ``fresh_seed`` for its whole life. ``drawn`` may be the request's live
    list; keeping one ``SamplingMetadata`` for a request spares counting its prompt at every token. The
    constraint has accepted all of ``drawn``.
    """

    params: SamplingParams
    prompt: Sequence[int]
    drawn: Sequence[int]
    seed: int
    constraint: TokenConstraint | None = None
    eos_ids: frozenset[int] = frozenset()
    way: Way | None = field(default=None, init=False, repr=False, compare=False)
    """``params`` as the native library takes them, made once."""
    is_plain: bool = field(init=False, repr=False, compare=False)
    """Whether every token is drawn from the model's own logits."""
    _prompt_ids: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        p = self.params
        changes = p.repetition_penalty != 1 or p.presence_penalty or p.frequency_penalty or p.logit_bias or p.min_tokens
        self.is_plain = self.constraint is None and not changes

    @property
    def is_unmodified(self) -> bool:
        """Whether the next token is drawn from the model's own logits."""
        return self.constraint is None and not self.is_adjusted

    @property
    def is_adjusted(self) -> bool:
        """Whether anything but the constraint changes the next token's logits."""
        p = self.params
        penalised = p.repetition_penalty != 1 or bool(self.drawn and (p.presence_penalty or p.frequency_penalty))
        return penalised or bool(p.logit_bias) or len(self.drawn) < p.min_tokens

    def prompt_ids(self) -> Tensor:
        """Return the prompt's distinct tokens."""
        if self._prompt_ids is None:
            self._prompt_ids, _ = _distinct(self.prompt)
        return self._prompt_ids

    def with_drafts(self, tokens: Sequence[int], constraint: TokenConstraint | None) -> SamplingMetadata:
        """Return the row as it will be when ``tokens`` were sampled and ``constraint`` has accepted them."""
        later = replace(self, drawn=(*self.drawn, *tokens), constraint=constraint)
        later._prompt_ids = self._prompt_ids
        return later


def apply_logits_processors(logits_V: Tensor, row: SamplingMetadata) -> Tensor:
    """Return a request's logits after penalties, biases and bans, in this order.

    Repetition penalty, presence and frequency penalty, logit bias, end tokens before ``min_tokens``,
    constraint. Forbidden tokens have minus infinity. The input is left as it is.

    Raises:
        SpecError: ``logit_bias`` names a token outside the vocabulary.
        DataError: the constraint cannot continue.
    """
    if row.is_unmodified:
        return logits_V
    logits_V = adjust_logits(logits_V, row)
    allowed_V = None if row.constraint is None else allowed_tokens(row.constraint, len(logits_V))
    if allowed_V is not None:
        logits_V.masked_fill_(~allowed_V.to(logits_V.device), -torch.inf)
    return logits_V


def adjust_logits(logits_V: Tensor, row: SamplingMetadata) -> Tensor:
    """Return a copy after all but the constraint; see ``apply_logits_processors``."""
    logits_V = logits_V.clone()
    params, vocab = row.params, len(logits_V)
    if params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty:
        _penalise(logits_V, row)
    if params.logit_bias:
        ids = torch.tensor([token for token, _ in params.logit_bias], device=logits_V.device)
        outside = [token for token, _ in params.logit_bias if token >= vocab]
        if outside:
            raise SpecError(
                "logit_bias", f"token {outside[0]} is outside the vocabulary of {vocab}", "use this model's token ids"
            )
        biases = torch.tensor([bias for _, bias in params.logit_bias], dtype=torch.float64).clamp(-_HIGHEST, _HIGHEST)
        logits_V.index_add_(0, ids, biases.to(logits_V))
    logits_V.clamp_(max=_HIGHEST)
    if len(row.drawn) < params.min_tokens:
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else row.eos_ids)}
        banned = [token for token in ends if 0 <= token < vocab]
        logits_V[torch.tensor(banned, dtype=torch.long, device=logits_V.device)] = -torch.inf
    return logits_V


def _penalise(logits_V: Tensor, row: SamplingMetadata) -> None:
    params, device = row.params, logits_V.device
    drawn_N, counts_N = _distinct(row.drawn)
    if params.repetition_penalty != 1:
        seen_N = torch.from_numpy(np.union1d(row.prompt_ids().numpy(), drawn_N.numpy())).to(device)
        values_N = logits_V[seen_N]
        penalty = params.repetition_penalty
        logits_V[seen_N] = torch.where(values_N > 0, values_N / penalty, values_N * penalty)
    if params.presence_penalty or params.frequency_penalty:
        penalties_N = params.presence_penalty + params.frequency_penalty * counts_N.double()
        logits_V[drawn_N.to(device)] -= penalties_N.to(logits_V)


def _distinct(tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the distinct tokens and how often each occurs."""
    ids_N, counts_N = np.unique(np.array(tokens, dtype=np.int64), return_counts=True)
    return torch.from_numpy(ids_N), torch.from_numpy(counts_N)
