"""The report from invented data: complete, escaped, self-contained."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import math
from pathlib import Path

import pytest

from fathom.pipeline.report import RunData, records, render_page
from fathom.pipeline.report.data import Curve, ExpertLoads, Needle, expert_summary
from tests.json_lines import write_json_lines

TOKENS = [float(1000 * i) for i in range(1, 41)]
DATA = RunData(
    name="invented <b>run</b>",
    facts={"parameters": 1234567, "tokens_per_second": 2345.6, "attention": "MLA-64+32"},
    stages=[("corpus", 12.5), ("pretrain", 421.0)],
    losses=[Curve(name="pretrain", x=TOKENS, y=[9 - i * 0.1 for i in range(40)])],
    bits_over_training=[Curve(name="四庫", x=[1e3, 2e3], y=[4.0, 3.0]), Curve(name="_b$x$", x=[1e3], y=[5.0])],
    bits_per_byte={"四庫": {"start": 8.1, "end": 3.0}, "other": {"start": None, "end": 2.5}},
    expert_loads=[
        ExpertLoads(layer=f"layer {i}", tokens=[1e3, 2e3, 3e3], shares=[[1.0, 1.0], [0.5, 1.5], [1.0, 1.0]])
        for i in (1, 2)
    ],
    dropped_fraction=0.034,
    needle=Needle(
        lengths=[128, 256], depths=[0.0, 0.5, 1.0], accuracy=[[1, 0.5, 0], [0, 0, 1]], gain_bits=[[3.1] * 3] * 2
    ),
    cache_bytes_per_token={"MHA": 1024, "GQA": 512, "MQA": 256, "MLA": 192},
    cache_kind="MLA",
    samples=[("<script>alert(1)</script>", "山高月小 & so on\n</blockquote>")],
    commands=[("Continue a text:", 'fathom generate runs/x --prompt "a < b"')],
)


class Reader(html.parser.HTMLParser):
    """Collects tags, text and every address an attribute could fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data", "poster")]

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_page_shows_every_part() -> None:
    page = render_page(DATA)
    reader = read(page)
    assert reader.tags.count("svg") == 5
    for words in (
        "Loss",
        "Bits per byte",
        "Load of every expert",
        "Needle",
        "cache",
        "Samples",
        "time went",
        "What next",
    ):
        assert words in reader.text
    for value in ("1,234,567", "2,346", "8.100", "3.000", "山高月小", "四庫", "7 min 1 s", "3.4%"):
        assert value in reader.text


def test_text_from_data_is_escaped() -> None:
    page = render_page(DATA)
    assert "<script" not in page
    assert "<b>run</b>" not in page
    assert "<script>alert(1)</script>" in read(page).text
    assert 'fathom generate runs/x --prompt "a < b"' in read(page).text


def test_page_asks_nothing_of_the_network() -> None:
    page = render_page(DATA)
    assert "http" not in page.replace("http-equiv", "")
    assert "@import" not in page
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in read(page).addresses)


def test_pictures_take_the_page_colour_and_hold_ascii_only() -> None:
    page = render_page(DATA)
    assert "currentColor" in page
    assert "#123456" not in page
    pictures = [part.split("</svg>")[0] for part in page.split("<svg")[1:]]
    assert all(picture.isascii() for picture in pictures)


def test_a_run_with_little_to_show_still_renders() -> None:
    page = render_page(RunData(name="bare", facts={}, stages=[("corpus", 0.0)]))
    assert "svg" not in read(page).tags
    for name in ("losses", "expert_loads", "needle", "samples", "cache_bytes_per_token"):
        empty = dataclasses.replace(DATA, **{name: None if name == "needle" else ()})
        assert "bits" in render_page(empty)


def test_json_holds_the_promised_keys() -> None:
    document = json.loads(json.dumps(DATA.to_json()))
    assert document["stages"] == [{"name": "corpus", "seconds": 12.5}, {"name": "pretrain", "seconds": 421.0}]
    assert document["bits_per_byte"]["四庫"] == {"start": 8.1, "end": 3.0}
    assert set(document["cache_bytes_per_token"]) == {"MHA", "GQA", "MQA", "MLA"}
    assert set(document["needle"]) == {"lengths", "depths", "accuracy", "gain_bits"}
    assert document["experts"]["dropped_fraction"] == 0.034


def test_expert_summary_against_its_formula() -> None:
    shares = [[4.0, 0.0, 0.0, 0.0]] * 9 + [[2.0, 1.0, 0.5, 0.5]]
    summary = expert_summary([ExpertLoads(layer="l", tokens=list(range(10)), shares=shares)], None)
    entropy = -sum(p * math.log(p) for p in (0.5, 0.25, 0.125, 0.125)) / math.log(4)
    assert summary["load_entropy"] == pytest.approx(entropy)
    assert summary["max_over_mean"] == pytest.approx(2.0)
    assert expert_summary([], None) == {}


def test_alarms_of_training_stand_in_the_report(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [{"step": step} for step in range(1, 6)]
    lines[1]["alarms"] = ["collapsed_routing", "constant_loss", "unknown"]
    lines[4]["alarms"] = ["constant_loss"]
    write_json_lines(tmp_path / "metrics.jsonl", lines)
    found = records.alarms("pretrain", tmp_path / "metrics.jsonl")
    said = [
        "pretrain: few experts did all the work, from 2 to 2 of 5",
        "pretrain: the loss did not fall, from 2 to the end of 5",
    ]
    assert [alarm.sentence() for alarm in found] == said
    data = RunData(name="bare", facts={}, stages=[], alarms=found)
    assert data.to_json()["alarms"] == said
    assert "<li>pretrain: the loss did not fall, from 2 to the end of 5</li>" in render_page(data)
    assert "went wrong" not in render_page(RunData(name="bare", facts={}, stages=[]))
