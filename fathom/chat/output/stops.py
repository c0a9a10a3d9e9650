"""Stop strings in incremental text."""

from __future__ import annotations

from collections.abc import Sequence

from fathom.chat.output.markers import partial_marker_length
from fathom.errors import SpecError


class StopStrings:
    """Ends a text at the stop string that is complete first; of two that end together, at the longer.

    Text that may become part of a stop string is held back. With ``include`` the stop string found is part of the text,
    else the text ends before it. The result does not depend on how the text is split into pieces.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        if any(not stop for stop in stops):
            raise SpecError("stop", "a stop string is empty", "give at least one character, or leave it out")
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """Add a piece; return the text that is final, and whether the text has ended. Later pieces are ignored."""
        if self.found is not None:
            return "", True
        text = self._held + text
        matches = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            end, start = min(matches)
            self.found = text[start:end]
            self._held = ""
            return text[: end if self._include else start], True
        safe = len(text) - partial_marker_length(text, self._stops)
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        """End the text: return what was held back."""
        rest, self._held = self._held, ""
        return rest
