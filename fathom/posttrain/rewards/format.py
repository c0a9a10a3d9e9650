"""The format reward: thinking and answer in their tags (R1 §2.2.2)."""

from __future__ import annotations

from collections.abc import Sequence

from fathom.posttrain.rewards.base import RewardInput
from fathom.posttrain.rewards.extract import ANSWER_BEGIN, ANSWER_END, TAGS, THINK_BEGIN, THINK_END
from fathom.spec.rewards import FormatStyle

_TAGS_IN_ORDER: dict[FormatStyle, tuple[str, ...]] = {
    "think_answer": (THINK_BEGIN, THINK_END, ANSWER_BEGIN, ANSWER_END),
    "think": (THINK_BEGIN, THINK_END),
    "answer": (ANSWER_BEGIN, ANSWER_END),
}


class FormatScorer:
    """1 or 0; a think tag that the prompt has opened counts as the answer's."""

    def __init__(self, style: FormatStyle) -> None:
        self._style = style

    def prepare(self, answers: Sequence[RewardInput]) -> None:
        """Need nothing."""

    def score(self, answered: RewardInput) -> float:
        """Judge the tags."""
        text = answered.answer.strip()
        if answered.prompt.rstrip().endswith(THINK_BEGIN) and not text.startswith(THINK_BEGIN):
            text = THINK_BEGIN + text
        return float(well_formed(text, self._style))


def well_formed(text: str, style: FormatStyle) -> bool:
    """Whether each tag of the style stands once, in order, no other tag stands, and neither content is blank.

    ``think_answer``: nothing but white space outside the tags. ``think``: thinking first, then the answer without
    tags. ``answer``: reasoning without tags, then the answer in its tags and nothing after it.
    """
    wanted = _TAGS_IN_ORDER[style]
    if any(text.count(tag) != (tag in wanted) for tag in TAGS):
        return False
    places = [text.index(tag) for tag in wanted]
    if places != sorted(places):
        return False
    pieces = []
    for tag in wanted:
        before, _, text = text.partition(tag)
        pieces.append(before.strip())
    pieces.append(text.strip())
    filled = {
        "think_answer": (False, True, False, True, False),
        "think": (False, True, True),
        "answer": (None, True, False),
    }[style]
    return all(want is None or bool(piece) == want for piece, want in zip(pieces, filled, strict=True))
