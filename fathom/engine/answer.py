"""An answer as it grows: sampled tokens are appended to it, up to the one that ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fathom.engine.request import Output
from fathom.engine.state import RequestState
from fathom.spec.sampling import Completion, FinishReason, TokenLogprob


class Appended(NamedTuple):
    """What became of the tokens of one step: those that belong to the answer, and how it ended, if it did.

    ``error`` is one line where the request's own constraint or stop checker raised.
    """

    tokens: tuple[TokenLogprob, ...]
    reason: FinishReason | None = None
    stop_token: TokenLogprob | None = None
    error: str | None = None


def append_tokens(state: RequestState, drawn: Sequence[TokenLogprob]) -> Appended:
    """Append sampled tokens to a request's answer, up to the one that ends it."""
    request = state.request
    plain = request.constraint is None and request.stop_checker is None
    for index, each in enumerate(drawn):
        token = each.token_id
        if token in state.all_stop_token_ids:
            return Appended(tuple(drawn[:index]), "stop", stop_token=each)
        try:
            ends = not plain and _accept(state, token)
        except Exception as error:  # the request's own rule, whatever it is made of
            return Appended(tuple(drawn[:index]), error=one_line(error))
        state.tokens.append(token)
        state.drawn.append(token)
        if ends:
            return Appended(tuple(drawn[: index + 1]), "stop")
        if len(state.drawn) == request.params.max_tokens:
            return Appended(tuple(drawn[: index + 1]), "length")
    return Appended(tuple(drawn))


def _accept(state: RequestState, token_id: int) -> bool:
    """Pass the answer's next token to the request's constraint and stop checker; whether it ends the answer."""
    constraint, checker = state.request.constraint, state.request.stop_checker
    if constraint is not None:
        constraint.accept(token_id)
    stops = checker is not None and checker.append(token_id)
    finished = constraint is not None and constraint.finished
    return finished or (stops and len(state.drawn) + 1 >= state.request.params.min_tokens)


def completion(outputs: Sequence[Output]) -> Completion:
    """Return the outputs of a request's steps as one completion."""
    tokens = [token for output in outputs for token in output.tokens]
    return Completion(
        token_ids=tuple(token.token_id for token in tokens),
        logprobs=tuple(token.logprob for token in tokens),
        finish_reason=outputs[-1].finish_reason or "error",
        details=tuple(tokens),
        prompt=next((output.prompt_logprobs for output in outputs if output.prompt_logprobs is not None), ()),
        stop_token=outputs[-1].stop_token,
        routing=outputs[-1].routing,
    )


def one_line(error: BaseException) -> str:
    """Say what an error is in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
