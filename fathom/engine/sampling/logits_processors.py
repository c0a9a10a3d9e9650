"""What changes a request's logits before it draws: penalties, biases and everything that forbids tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fathom.engine.constraint import TokenConstraint, allowed_tokens
from fathom.engine.sampling.logit_changes import LogitChanges
from fathom.kernels.native.drawing import Way
from fathom.spec.sampling import SamplingParams


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
    _never_modified: bool = field(init=False, repr=False, compare=False)
    _changes: LogitChanges | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        p = self.params
        changes = p.repetition_penalty != 1 or p.presence_penalty or p.frequency_penalty or p.logit_bias or p.min_tokens
        self._never_modified = self.constraint is None and not changes

    @property
    def is_unmodified(self) -> bool:
        """Whether the next token is drawn from the model's own logits."""
        return self._never_modified or (self.constraint is None and not self.is_adjusted)

    @property
    def is_adjusted(self) -> bool:
        """Whether anything but the constraint changes the next token's logits."""
        p = self.params
        penalised = p.repetition_penalty != 1 or bool(self.drawn and (p.presence_penalty or p.frequency_penalty))
        return penalised or bool(p.logit_bias) or len(self.drawn) < p.min_tokens

    def changes(self, vocab: int) -> LogitChanges:
        """Return what penalties, biases and bans do to the logits, made once.

        Raises:
            SpecError: ``logit_bias`` names a token outside the vocabulary.
        """
        if self._changes is None:
            ends = {*self.params.stop_token_ids, *(() if self.params.ignore_eos else self.eos_ids)}
            self._changes = LogitChanges(self.params, self.prompt, ends, vocab)
        return self._changes

    def with_drafts(self, tokens: Sequence[int], constraint: TokenConstraint | None) -> SamplingMetadata:
        """Return the row as it will be when ``tokens`` were sampled and ``constraint`` has accepted them."""
        later = replace(self, drawn=(*self.drawn, *tokens), constraint=constraint)
        later._changes = None if self._changes is None else self._changes.copy()
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
    logits_V = logits_V.clone()
    if row.is_adjusted:
        row.changes(len(logits_V)).apply(logits_V, row.drawn)
    allowed_V = None if row.constraint is None else allowed_tokens(row.constraint, len(logits_V))
    if allowed_V is not None:
        logits_V.masked_fill_(~allowed_V.to(logits_V.device), -torch.inf)
    return logits_V
