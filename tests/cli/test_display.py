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
    for done in range(100):
        display.update(done, 100, "tokens", {"loss": "3.1"})
    display.printed -= 11
    display.started -= 20
    display.update(50, 100, "tokens", {"loss": "3.1"})
    display.message("a [note] worth keeping")
    display.finish(61)
    assert stream.getvalue().splitlines() == [
        "[2/3] pretrain",
        "  pretrain: 50 of 100 tokens, loss 3.1, about 20 s left",
        "a [note] worth keeping",
        "  pretrain: done in 1 min 1 s",
    ]


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
