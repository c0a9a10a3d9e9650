"""Progress as a bar on a terminal and as plain lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fathom.cli.display import LiveDisplay, PlainDisplay, TimeLeft, make_display


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=100), stream


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_name_every_stage_and_are_not_repeated_too_often() -> None:
    screen, stream = console(terminal=False)
    clock = Clock()
    display = PlainDisplay(screen, clock)
    display.stage("pretrain", 2, 3)
    for done in range(30, 50):
        display.update(done, 100, "tokens", metrics={"loss": "3.1"})
    clock.now += 20
    display.update(50, 100, "tokens", phase="text", metrics={"loss": "3.1"})
    clock.now += 20
    display.update(70, 100, "tokens", phase="text", metrics={"loss": "3.1"})
    display.message("a [note] worth keeping")
    display.finish(61)
    display.message("report: there")
    assert stream.getvalue().splitlines() == [
        "[2/3] pretrain",
        "  pretrain: 50 of 100 tokens, text, loss 3.1",
        "  pretrain: 70 of 100 tokens, text, loss 3.1, about 30 s left",
        "  a [note] worth keeping",
        "  pretrain: done in 1 min 1 s",
        "report: there",
    ]
    assert isinstance(make_display(screen), PlainDisplay)


def test_bytes_are_shown_with_their_rate() -> None:
    screen, stream = console(terminal=False)
    clock = Clock()
    display = PlainDisplay(screen, clock)
    display.stage("convert", 1, 1)
    display.update(0, 10_000_000, "bytes")
    clock.now += 10
    display.update(5_000_000, 10_000_000, "bytes")
    assert stream.getvalue().splitlines()[-1] == "  convert: 5M of 10M bytes, 500 kB/s, about 10 s left"


def test_the_time_left_follows_the_last_minute_and_not_what_a_resumed_run_had_done() -> None:
    left = TimeLeft()
    left.update(0.0, 900)
    assert left.text(900, 1000) == ""
    left.update(1.0, 901)
    assert left.text(901, 1000) == "about 1 min 39 s left"
    for second in range(2, 200):
        left.update(float(second), 901 + (second - 1) * 0.1)
    assert left.rate == pytest.approx(0.1)
    assert left.text(1000, 1000) == left.text(5, None) == ""
    left.update(201.0, 3)  # another count
    assert left.text(3, 10) == ""


def test_a_terminal_gets_a_bar_that_ends_as_one_line() -> None:
    screen, stream = console(terminal=True)
    display = make_display(screen)
    assert isinstance(display, LiveDisplay)
    display.stage("shards", 1, 1)
    display.update(2_500_000, 10_000_000, "bytes", phase="texts")
    display.message("a [note]")
    assert display.bar is not None
    assert display.bar.tasks[0].completed == 2_500_000
    assert display.bar.tasks[0].fields["count"] == "2.5M of 10M bytes"
    assert display.bar.tasks[0].fields["metrics"] == "texts"
    display.finish(3.21)
    assert display.bar is None
    assert "a [note]" in stream.getvalue()
    assert "3.2 s" in stream.getvalue().splitlines()[-1]
    display.close()
