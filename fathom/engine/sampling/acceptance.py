"""Speculative decoding with drafts that are single tokens: which of them stay, and what follows.

Leviathan et al. 2023 accept a draft d with the target's probability p(d) and otherwise draw from p without d. When a
draft is one token and not a distribution, drawing x from p and keeping d if x = d is the same rule: x is d with
probability p(d), and where it is not, it is distributed as p without d. So the engine draws at every drafted position
as it would without drafts, by the same number of (seed, position), and continues as long as the drafts are equal. A
request's tokens are then the ones it would have had without drafts, at any temperature and whatever was drafted when.
"""

from __future__ import annotations

from collections.abc import Sequence

from fathom.engine.sampling.logits_processors import SamplingMetadata
from fathom.spec.sampling import TokenLogprob


def draft_metadata(row: SamplingMetadata, drafts: Sequence[int]) -> list[SamplingMetadata]:
    """Return what drawing needs at the next position and after each draft; the request's own row is the first.

    Drafts end early where the constraint forbids one, and before one that would end the answer: there is one draft
    less than there are rows. Call it before the forward pass, and give the model no other drafts.
    """
    rows, constraint = [row], row.constraint
    ends = {*row.params.stop_token_ids, *(() if row.params.ignore_eos else row.eos_ids)}
    for count, token in enumerate(drafts, start=1):
        if token in ends:
            break
        if constraint is not None:
            try:
                constraint = constraint.copy()
                constraint.accept(token)
            except Exception:  # the request's own rule, whatever it is made of
                break
            if constraint.finished:
                break
        rows.append(row.with_drafts(drafts[:count], constraint))
    return rows


def accept_drafts(drawn: Sequence[TokenLogprob], drafts: Sequence[int]) -> list[TokenLogprob]:
    """Return the tokens of one step: drafts that were drawn, and the first that was not, or the one after all drafts.

    ``drawn`` are ``draw``'s tokens for ``draft_metadata``, one more than there are drafts. What was computed for the
    positions after the last returned token is void.
    """
    hits = next((i for i, draft in enumerate(drafts) if drawn[i].token_id != draft), len(drafts))
    return list(drawn[: hits + 1])
