"""What the verbs write to a terminal: all text passes one filter, and only Fathom's own styles do not."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Progress, ProgressColumn
from rich.segment import Segment
from rich.text import Text

from fathom.terminal import TerminalFilter, visible


class FilteredStream(io.TextIOBase):
    """A stream of text whose control characters are shown instead of obeyed.

    It has no ``buffer``: whoever writes bytes would pass by the filter.
    """

    def __init__(self, stream: TextIO) -> None:
        self.unfiltered = stream
        self.bar: FilteredProgress | None = None
        """A bar that is drawn on the terminal now: lines are printed above it."""
        self._filter = TerminalFilter()
        self._line = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's own."""
        return self.unfiltered.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """The stream's own."""
        return self.unfiltered.errors

    def write(self, text: str) -> int:
        """Write text, filtered; return how many characters it had."""
        if not isinstance(text, str):
            raise TypeError(f"write() takes text, not {type(text).__name__}")
        shown = self._filter.feed(text)
        if self.bar is None:
            self.unfiltered.write(shown)
            return len(text)
        *lines, self._line = (self._line + shown).split("\n")
        for line in lines:
            self.bar.console.print(Text(line), soft_wrap=True)
        return len(text)

    def end_bar(self) -> None:
        """Write directly again, beginning with what was not a whole line yet."""
        self.bar, rest, self._line = None, self._line, ""
        self.unfiltered.write(rest)

    def flush(self) -> None:
        """Flush the stream."""
        self.unfiltered.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self.unfiltered.isatty()

    def fileno(self) -> int:
        """Return the stream's file descriptor."""
        return self.unfiltered.fileno()

    def writable(self) -> bool:
        """Return True."""
        return True


def filter_streams() -> None:
    """Filter stdout where it is a terminal, and stderr, whose lines may be read on one later, wherever it goes."""
    if sys.stdout is not None and not isinstance(sys.stdout, FilteredStream) and sys.stdout.isatty():
        sys.stdout = FilteredStream(sys.stdout)
    if sys.stderr is not None and not isinstance(sys.stderr, FilteredStream):
        sys.stderr = FilteredStream(sys.stderr)


def unfiltered(stream: TextIO) -> TextIO:
    """Return a stream as it was before ``filter_streams``, for Fathom's own styles."""
    return stream.unfiltered if isinstance(stream, FilteredStream) else stream


@contextmanager
def unfiltered_stdout() -> Iterator[None]:
    """While entered, stdout passes escape codes: for output that holds nothing from outside."""
    before, sys.stdout = sys.stdout, unfiltered(sys.stdout)
    try:
        yield
    finally:
        sys.stdout = before


class FilteredConsole(Console):
    """A console that takes every text literally, without markup, and filters it before it is styled."""

    def __init__(self, *, stderr: bool = False, file: TextIO | None = None, **more: Any) -> None:
        stream = file or unfiltered(sys.stderr if stderr else sys.stdout)
        super().__init__(file=stream, markup=False, emoji=False, highlight=False, **more)

    def render_str(self, text: str, **more: Any) -> Text:
        """Return a string as it is shown, so that it is laid out by the width it will have."""
        return super().render_str(visible(text), **more)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable, those with text filtered."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class FilteredProgress(Progress):
    """Bars that end without a trace.

    What is printed meanwhile stands above them, as plain text: rich's own redirection obeys the escape codes in it.
    """

    def __init__(self, *columns: str | ProgressColumn, console: Console) -> None:
        super().__init__(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)

    def start(self) -> None:
        """Draw the bars."""
        super().start()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, FilteredStream) and stream.isatty():
                stream.bar = self

    def stop(self) -> None:
        """Remove the bars."""
        super().stop()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, FilteredStream) and stream.bar is self:
                stream.end_bar()
