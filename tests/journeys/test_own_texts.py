"""Own texts -> recipe new -> check -> train -> generate, each typed once."""

from __future__ import annotations

import random

import pytest

from tests.journeys.terminal import Terminal

pytestmark = pytest.mark.slow


def write_notes(terminal: Terminal) -> None:
    """Write forty notes of the same few sentences in ever new order."""
    notes = terminal.folder / "notes"
    notes.mkdir()
    rng = random.Random(0)
    said = [
        "The harbour lies to the west of the town.",
        "Every boat has a lamp at its bow.",
        "At dusk the lamps are lit.",
        "Nobody rows beyond the second buoy.",
        "The keeper counts the boats at night.",
        "In winter the pier is empty.",
    ]
    for number in range(40):
        words = " ".join(f"{rng.choice(said)} Note {rng.randint(1, 999)}." for _ in range(60))
        (notes / f"{number}.md").write_text(f"# Day {number}\n\n{words}\n")


def test_own_texts_become_a_model_that_writes_like_them(terminal: Terminal) -> None:
    write_notes(terminal)
    made = terminal.type("fathom recipe new pretrain --text notes --hours 0.004 --out mine.toml")
    for command in made.next_commands():
        assert "Traceback" not in terminal.type(command).shown
    report = (terminal.folder / "runs" / "mine" / "report.html").read_text()
    assert "bits per byte" in report
    trained = terminal.transcript[-1]
    assert "done" in trained.out + trained.err
    (generate,) = [command for command in trained.next_commands() if command.startswith("fathom generate")]
    assert terminal.type(generate).out.strip()


def test_a_run_that_was_stopped_goes_on_with_what_was_printed(terminal: Terminal) -> None:
    write_notes(terminal)
    terminal.type("fathom recipe new pretrain --text notes --hours 0.01 --out mine.toml")
    stopped = terminal.type("fathom train mine.toml --out runs/mine", stop_at="pretrain: ", code=130)
    (again,) = [command for command in stopped.next_commands() if "--resume" in command]
    assert "[1/" not in terminal.type(again).out
    assert (terminal.folder / "runs" / "mine" / "report.html").is_file()
