"""Stop strings for samplers of token ids: the answer ends with the token that completes one."""

from __future__ import annotations

from collections.abc import Sequence

from fathom.chat.output.stops import StopStrings
from fathom.tokenizer.bpe import Tokenizer


class StopStringChecker:
    """A ``spec.sampling.StopChecker`` of one answer: decodes its tokens as they come and looks for stop strings.

    Special tokens count as their text. A stop string may start in one token and end in another.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._stream = tokenizer.stream(skip_special=False, continues=True)
        self._stops = StopStrings(stops)

    def append(self, token_id: int) -> bool:
        """Take the answer's next token and return whether a stop string is complete."""
        _, ended = self._stops.push(self._stream.push(token_id))
        return ended
