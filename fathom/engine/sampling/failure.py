"""Why a row has no next token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class SamplingFailure:
    """Why one row has no next token: its logits are not finite, nothing is allowed, or its request's fields."""

    kind: Literal["logits", "nothing allowed", "request"]
    message: str


NOT_FINITE = SamplingFailure("logits", "the model's logits are not finite; its weights or its cache are damaged")
NOTHING_ALLOWED = SamplingFailure(
    "nothing allowed",
    "no token is allowed here: constraint, min_tokens and logit_bias forbid all of them together; "
    "lower min_tokens or loosen the constraint",
)
