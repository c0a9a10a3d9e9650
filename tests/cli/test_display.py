"""Progress as a bar on a terminal and as plain lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from fathom.cli.display import LiveDisplay, PlainDisplay, make_display


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=100), stream


def test_plain_lines_name_every_step_and_are_not_repeated_too_often() -> None:
    screen, stream = console(terminal=False)
    display = make_display(screen)
    assert isinstance(display, PlainDisplay)
    display.stage("pretrain", 2, 3)
    for done in range(30, 50):
        display.update(done, 100, "tokens", {"loss": "3.1"})
    display.printed -= 11
    display.marks[0] = (display.marks[0][0] - 20, 30)
    display.update(50, 100, "tokens", {"loss": "3.1"})
    display.message("a [note] worth keeping")
    display.finish(61)
    assert stream.getvalue().splitlines() == [
        "[2/3] pretrain",
        "  pretrain: 50 of 100 tokens, loss 3.1, about 50 s left",
        "a [note] worth keeping",
        "  pretrain: done in 1 min 1 s",
    ]


def test_the_time_left_follows_what_was_done_since_a_resumed_step_began() -> None:
    screen, stream = console(terminal=False)
    display = PlainDisplay(screen)
    display.stage("pretrain", 1, 1)
    display.update(900, 1000, "tokens")
    for done in (910, 920):
        display.marks = type(display.marks)([(t - 10, count) for t, count in display.marks], display.marks.maxlen)
        display.printed -= 11
        display.update(done, 1000, "tokens")
    assert "90 s left" not in stream.getvalue()
    assert stream.getvalue().splitlines()[-1].endswith("about 1 min 20 s left")
    display.printed -= 11
    display.update(1, 2, "files")
    assert stream.getvalue().splitlines()[-1] == "  pretrain: 1 of 2 files"


def test_a_terminal_gets_a_bar_that_ends_as_one_line() -> None:
    screen, stream = console(terminal=True)
    display = make_display(screen)
    assert isinstance(display, LiveDisplay)
    display.stage("shards", 1, 1)
    display.update(2_500_000, 10_000_000, "bytes", {"": "texts"})
    display.message("a [note]")
    assert display.bar is not None
    assert display.bar.tasks[0].completed == 2_500_000
    assert display.bar.tasks[0].fields["count"] == "2.5M of 10M bytes"
    display.finish(3.21)
    assert display.bar is None
    assert "a [note]" in stream.getvalue()
    assert "3.2 s" in stream.getvalue().splitlines()[-1]
    display.close()
