"""Pairs of a better and a worse answer: read from files, and as tokens with the targets of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fathom.data.conversations.loss_mask import Sample, encode_with_loss_mask
from fathom.data.conversations.templated import said
from fathom.data.forms import AS_FOUND, Columns, read_rows
from fathom.data.row_report import RowProblem, RowReport
from fathom.data.validation_split import text_key
from fathom.errors import DataError
from fathom.posttrain.preferences.forms import PREFERENCE_FORMS, Preference
from fathom.tokenizer import Tokenizer

MAX_TRAILING_TOKENS = 2
"""Tokens that a template may put behind the one that ends an answer: a line's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """A preference as tokens; of each answer only its own turn is a target. ``prompt`` names what both answer.

    ``conversation`` is the prompt with the better answer, as messages.
    """

    chosen: Sample
    rejected: Sample
    prompt: str
    conversation: tuple[Mapping[str, Any], ...] = ()

    @property
    def key(self) -> int:
        """A hash of the prompt: pairs of one prompt have one key."""
        return text_key(self.prompt)

    @property
    def length(self) -> int:
        """Input tokens of the longer one of both answers, its prompt included."""
        return max(len(self.chosen.tokens), len(self.rejected.tokens)) - 1


def read_preferences(path: Path, report: RowReport, columns: Columns = AS_FOUND) -> Iterator[Preference]:
    """Yield the pairs of a file, or of the files of a folder, in one of ``PREFERENCE_FORMS``.

    A row that cannot be used is reported and left out.

    Raises:
        DataError: the file cannot be read, or ``columns`` has to say what its columns mean.
    """
    for place, preference in read_rows(path, PREFERENCE_FORMS, report, columns):
        yield replace(preference, place=place)


def encode_pairs(
    tokenizer: Tokenizer, preferences: Iterable[Preference], report: RowReport, *, max_tokens: int
) -> list[PreferencePair]:
    """Return the pairs whose two sides have at most ``max_tokens`` + 1 tokens; the others are reported."""
    pairs = []
    for preference in preferences:
        try:
            chosen, rejected = (
                _answer(encode_with_loss_mask(tokenizer, [*preference.messages, answer]))
                for answer in (preference.chosen, preference.rejected)
            )
        except DataError as error:
            report.add(RowProblem("template", preference.place, str(error)))
            continue
        pair = PreferencePair(
            chosen=chosen,
            rejected=rejected,
            prompt=json.dumps(said(preference.messages), ensure_ascii=False),
            conversation=(*preference.messages, preference.chosen),
        )
        problem = pair_error(pair, max_tokens, preference.place)
        if problem is not None:
            report.add(problem)
            continue
        report.used += 1
        pairs.append(pair)
    return pairs


def pair_error(pair: PreferencePair, max_tokens: int, place: str) -> RowProblem | None:
    """Return why nothing can be learned from a pair, or None."""
    longest = max(len(pair.chosen.tokens), len(pair.rejected.tokens))
    if longest > max_tokens + 1:
        sentence = f"{longest} tokens exceed {max_tokens + 1}; shorten it, or raise sequence_length"
        return RowProblem("too_long", place, sentence)
    if pair.chosen == pair.rejected:
        return RowProblem("nothing_learned", place, "both answers are the same; leave the pair out")
    if not (any(pair.chosen.learned) and any(pair.rejected.learned)):
        return RowProblem("nothing_learned", place, "the chat template hides an answer; use another template")
    return None


def _answer(sample: Sample) -> Sample:
    """Return a sample of which only the last learned stretch is learned: the answer, not turns before it.

    Where that stretch is not at the end, the template shows the answer otherwise than it is written: none is learned.
    """
    end = max((place + 1 for place, on in enumerate(sample.learned) if on), default=0)
    start = end = end if len(sample.tokens) - end <= MAX_TRAILING_TOKENS else 0
    while start and sample.learned[start - 1]:
        start -= 1
    return Sample(sample.tokens, [start <= place < end for place in range(len(sample.tokens))])
