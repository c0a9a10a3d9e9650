"""Conversations as token ids with a loss mask.

The tokens are those that ``encode_chat`` gives, whatever the template. An answer's place among them is found by
encoding prefixes of the conversation: up to the answer as a prompt, and up to its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fathom.chat.output.budget import think_tag_ids
from fathom.chat.output.thinking import ends_inside_reasoning
from fathom.data.conversations.templated import REASONING, KeepThinking, Messages, TemplatedConversation
from fathom.errors import DataError
from fathom.tokenizer import Tokenizer, special

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation's token ids and loss mask: ``learned`` is true for tokens in the loss.

    ``left_out`` counts turns of trained roles that are masked out, since the template shows them otherwise than the
    model would have to write them, e.g. without their reasoning. ``key`` is a hash of the conversation's text.
    """

    tokens: list[int]
    learned: list[bool]
    left_out: int = 0
    key: int = 0


def encode_with_loss_mask(
    tokenizer: Tokenizer,
    messages: Messages,
    *,
    learn: Sequence[str] = ("assistant",),
    tools: Sequence[Mapping[str, Any]] | None = None,
    thinking: KeepThinking = "keep",
    template: str | None = None,
    turns: Sequence[bool | None] = (),
) -> Sample:
    """Encode a conversation in OpenAI's format with its loss mask.

    Of the turns whose role is in ``learn``, the loss covers all that the model has to write: reasoning, content, calls
    and the token that ends the turn; never what a prompt ends with, such as ``<｜Assistant｜>``. ``thinking`` "keep"
    has the last answer begin with its reasoning, between think tags if the template has no format for it; "drop"
    shows none. Earlier answers that had reasoning are masked out, since templates show them without it. The template is
    the tokenizer's unless one is given, and may be one that Fathom does not know. ``turns`` has an entry for every
    message, or none: True puts a message into the loss and False out of it, whatever its role; None leaves it to that.

    Raises:
        DataError: a message is malformed, or the template refuses the conversation.
    """
    conversation = TemplatedConversation.of(
        tokenizer, messages, tools=tools or (), thinking=thinking, template=template
    )
    whole = conversation.until(len(conversation.messages))
    chosen = _chosen(conversation.messages, learn, turns)
    spans = _TurnLocator(conversation, whole).spans(chosen)
    learned = [False] * len(whole)
    for start, end in filter(None, spans):
        learned[start:end] = [True] * (end - start)
    final = len(conversation.messages) - 1
    last = spans[-1] if chosen and chosen[-1] == final else None
    if last is not None and conversation.hides_reasoning(final):
        whole, learned = _with_reasoning(conversation, whole, learned, last)
    learned[:1] = [False] * len(learned[:1])  # nothing stands before the first token to predict it from
    return Sample(whole, learned, left_out=spans.count(None))


def _chosen(messages: Messages, learn: Sequence[str], turns: Sequence[bool | None]) -> list[int]:
    """Return the messages that are learned. ``turns`` belong to the last ones: tools may stand in one before them."""
    flags = [None] * (len(messages) - len(turns)) + list(turns)
    return [
        index
        for index, (message, flag) in enumerate(zip(messages, flags, strict=True))
        if (message["role"] in learn if flag is None else flag)
    ]


class _TurnLocator:
    """Finds turns among the tokens of the whole conversation."""

    def __init__(self, turns: TemplatedConversation, whole: list[int]) -> None:
        self._turns = turns
        self._whole = whole
        self._special = turns.tokenizer.special_ids

    def spans(self, indices: Sequence[int]) -> list[Span | None]:
        """Return where each turn is written, up to the token that ends it; None where it is not found.

        Most stand where they stood when the conversation ended with them. Where text before them is shown otherwise by
        now, they are looked for between their neighbours.
        """
        alone = [self._alone(index) for index in indices]
        spans = [self._unmoved(*turn) if turn is not None else None for turn in alone]
        after = 0
        for number, turn in enumerate(alone):
            if turn is not None and spans[number] is None:
                before = next((span[0] for span in spans[number + 1 :] if span is not None), len(self._whole))
                spans[number] = self._moved(*turn, after, before)
            after = max(after, (spans[number] or (0, 0))[1])
        return spans

    def _alone(self, index: int) -> tuple[list[int], int] | None:
        """Return a conversation that ends with a turn, and where that begins; None where it cannot be trained on."""
        final = index == len(self._turns.messages) - 1
        try:
            turn = self._whole if final else self._turns.until(index + 1)
            if self._turns.messages[index]["role"] != "assistant":
                return turn, self._content_start(index, turn)
            start = self._answer_start(index, turn)
            return None if start is None or (not final and self._turns.hides_reasoning(index)) else (turn, start)
        except DataError:  # a template may refuse a conversation that ends here
            return None

    def _answer_start(self, index: int, turn: list[int]) -> int | None:
        """Return where the model continues after the prompt; a token of both the prompt and the answer is skipped."""
        prompt = self._turns.until(index, prompt=True)
        same = _common(prompt, turn)
        rest = prompt[same:]
        if not rest:
            return same
        if rest[0] not in self._special:
            missing = self._bytes(rest)
            for end in range(same + 1, min(same + len(rest) + 1, len(turn)) + 1):
                covered = self._bytes(turn[same:end])
                if covered.startswith(missing):
                    return end
        return same if index == 0 or same >= len(self._turns.until(index)) else None

    def _content_start(self, index: int, turn: list[int]) -> int:
        """Return where a turn that no prompt begins differs from one of another content."""
        message = self._turns.messages[index]
        other = "b" if str(message["content"])[:1] == "a" else "a"
        changed = self._turns.ids([*self._turns.messages[:index], {**message, "content": other}])
        return _common(changed, turn)

    def _ends(self, turn: list[int], start: int) -> Iterator[int]:
        """Yield where a turn may end: after a special token that only white space and such tokens follow."""
        end, any_special = len(turn), False
        for place in range(len(turn) - 1, start - 1, -1):
            if turn[place] in self._special:
                any_special = True
                yield place + 1
            elif self._bytes(turn[place : place + 1]).strip():
                break
        if not any_special:
            yield end

    def _unmoved(self, turn: list[int], start: int) -> Span | None:
        ends = self._ends(turn, start)
        return next(((start, end) for end in ends if self._whole[:end] == turn[:end]), None)

    def _moved(self, turn: list[int], start: int, after: int, before: int) -> Span | None:
        """Return where a turn stands between two places, if special tokens enclose it, which no content can spell."""
        for end in self._ends(turn, start):
            if start and {turn[start - 1], turn[end - 1]} <= self._special:
                stretch = turn[start - 1 : end]
                for place in range(max(after - 1, 0), before - len(stretch) + 1):
                    if self._whole[place : place + len(stretch)] == stretch:
                        return place + 1, place + len(stretch)
        return None

    def _bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(map(self._turns.tokenizer.token_bytes, ids))


def _with_reasoning(
    turns: TemplatedConversation, whole: list[int], learned: list[bool], last: Span
) -> tuple[list[int], list[bool]]:
    """Put the last answer's reasoning before it, as the model would write it after the template's prompt."""
    tokenizer, start = turns.tokenizer, last[0]
    prompt = turns.until(len(turns.messages) - 1, prompt=True)
    lead = prompt if prompt[:start] == whole[:start] else whole[:start]
    reasoning = turns.messages[-1][REASONING] + "\n"
    opened = ends_inside_reasoning(tokenizer, lead)
    thought = [] if opened else list(think_tag_ids(tokenizer, special.THINK_BEGIN))
    thought += tokenizer.encode(reasoning if opened else "\n" + reasoning, continues=True)
    thought += think_tag_ids(tokenizer, special.THINK_END + "\n\n")
    return (
        [*lead, *thought, *whole[start:]],
        [*learned[:start], *[False] * (len(lead) - start), *[True] * len(thought), *learned[start:]],
    )


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
