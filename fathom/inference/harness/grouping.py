"""Groups continuations of one context into questions, so that the context is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fathom.errors import ContextError, DataError
from fathom.evals.multiple_choice import Question
from fathom.logs import warn_once

TOKENS_AT_ONCE = 4096
"""Tokens of continuations, padding included, that run as one batch."""


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """A continuation to be scored after a context; ``pair`` is their text, None where there is none."""

    pair: tuple[str, str] | None
    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class QuestionGroup:
    """A question, and which requests its choices are."""

    question: Question
    places: Sequence[int]


def grouped(requests: Sequence[ScoringRequest], max_length: int) -> list[QuestionGroup]:
    """Group requests of the same context, at most ``TOKENS_AT_ONCE`` in a group; a context too long is cut on the left.

    Raises:
        ContextError: a continuation alone has more than ``max_length`` tokens.
        DataError: a continuation has no tokens of its own.
    """
    found: list[QuestionGroup] = []
    open_places: dict[tuple[int, ...], list[int]] = {}

    def close(context: tuple[int, ...]) -> None:
        places = open_places.pop(context)
        choices = [requests[place].continuation for place in places]
        found.append(
            QuestionGroup(
                Question(context_ids=context, choices_ids=choices, choice_bytes=[1] * len(choices), answer=0), places
            )
        )

    for place, request in enumerate(requests):
        size = len(request.continuation)
        _check(request, max_length)
        room = max_length + 1 - size  # the last token is predicted and never an input
        context = request.context[-room:]
        if len(context) < len(request.context):
            warn_once(f"contexts are truncated on the left to fit the model's context of {max_length} tokens")
        places = open_places.setdefault(context, [])
        longest = max([size, *(len(requests[each].continuation) for each in places)])
        too_many = (len(places) + 1) * longest > TOKENS_AT_ONCE
        if places and (too_many or len(context) + longest > max_length + 1):
            close(context)
            places = open_places.setdefault(context, [])
        places.append(place)
    for context in list(open_places):
        close(context)
    return sorted(found, key=lambda group: group.places[0])


def _check(request: ScoringRequest, max_length: int) -> None:
    shown = "" if request.pair is None else f" {request.pair[1]!r:.60}"
    if not request.continuation:
        raise DataError(
            f"the continuation{shown} has no tokens of its own after its context; begin it with a space or a line break"
        )
    if len(request.continuation) > max_length:
        raise ContextError(
            f"the continuation{shown} has {len(request.continuation)} tokens, more than the model's context of "
            f"{max_length}; choose another task or model"
        )
