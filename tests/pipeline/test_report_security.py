"""A report whose every name is hostile, opened in Chromium: nothing runs, nothing is fetched, pictures are drawn."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from matplotlib.figure import Figure

from fathom.pipeline.report import RunData, render_page
from fathom.pipeline.report.charts import MAX_LABEL, plain
from fathom.pipeline.report.data import Curve, ExampleAnswer, ExampleProblem, StepCurves, TaskScore
from fathom.study.plotting import plot_style
from tests.pipeline.test_report import DATA, TOKENS
from tests.serve.page.conftest import CHROMIUM

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = [
    '"><script>window.owned = 1</script><img src=x onerror="window.owned = 2">',
    '" onload="window.owned = 3" x="',
    "$\\frac{1}{$ $x_{$",
    "_private_",
    "two\nlines\r\x00\x1b[31m\x9b",
    "\u202elanoitceridib\u2066 \U000e0041 山 🌊",
    "x" * 10_000,
    "</svg></style></title><svg onload=window.owned=4>&lt;{{ 7*7 }}",
    "",
]


def hostile_run(name: str) -> RunData:
    """Return a run of every kind of part, named so throughout."""
    curves = [Curve(name=name, x=TOKENS, y=[1.0] * 40), Curve(name=f"{name}2", x=TOKENS, y=[2.0] * 40)]
    score = TaskScore(accuracy=0.5, low=0.4, high=0.6, n=10, tokens=3.0, finished=1.0, more={name: 0.5})
    answer = ExampleAnswer(stage=name, text=name, correct=True, finished=True)
    return dataclasses.replace(
        DATA,
        name=name,
        origin=name,
        facts={name: name},
        stages=[(name, 1.0)],
        losses=curves,
        bits_over_training=curves,
        bits_per_byte={name: {"start": 8.0, "end": 3.0}},
        expert_loads=[dataclasses.replace(load, layer=name) for load in DATA.expert_loads],
        cache_kind=name,
        samples=[(name, name)],
        sft_loss_curves=curves,
        online=[StepCurves(name=name, panels={"reward": curves})],
        tasks={name: {name: score, f"{name}2": score}},
        problems=[ExampleProblem(task=name, question=name, expected=name, answers=[answer])],
        commands=[(name, name)],
    )


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    from tests.serve.page.pages import launch

    with sync_api.sync_playwright() as playwright:
        browser = launch(playwright, CHROMIUM)
        yield browser.new_page()
        browser.close()


def test_a_report_of_hostile_names_is_inert_and_whole(page: Page, tmp_path: Path) -> None:
    whole = shape(page, hostile_run("ordinary"), tmp_path)
    for name in ("".join(HOSTILE[:2]), "".join(HOSTILE[2:6]), *HOSTILE[6:8]):
        assert shape(page, hostile_run(name), tmp_path) == whole, name[:80]


def shape(page: Page, run: RunData, folder: Path) -> dict[str, Any]:
    """Open a report; return its elements by kind and its pictures' sizes, which no name may change."""
    file = folder / "report.html"
    file.write_text(render_page(run), encoding="utf-8")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert [address for address in asked if not address.startswith(("file:", "data:image/png"))] == []
    assert page.evaluate("window.owned") is None
    found: dict[str, Any] = page.evaluate(
        """() => {
            const kinds = {};
            for (const { localName } of document.querySelectorAll("body *:not(svg *)")) {
                kinds[localName] = (kinds[localName] ?? 0) + 1;
            }
            const pictures = [...document.querySelectorAll("svg")];
            return {
                kinds,
                owned: document.querySelectorAll("script, img").length +
                    [...document.querySelectorAll("*")].flatMap((node) => [...node.attributes])
                        .filter(({ name }) => name.startsWith("on")).length,
                sizes: pictures.map((picture) => picture.getAttribute("viewBox")),
                empty: pictures.filter((picture) => picture.querySelectorAll("path").length < 4).length,
            };
        }"""
    )
    assert found["owned"] == 0
    assert found["empty"] == 0
    return found


def test_labels_are_printable_ascii_and_short() -> None:
    for name in HOSTILE:
        label = plain(name)
        assert label.isascii()
        assert label.isprintable()
        assert 0 < len(label) <= MAX_LABEL
        assert not label.startswith("_")


def test_pictures_of_the_studies_take_names_literally() -> None:
    with plot_style():
        figure = Figure()
        axes = figure.subplots()
        axes.set_title("$\\frac{1}{$")
        axes.plot([1, 2], label="$x_{$")
        axes.legend()
        figure.savefig(io.BytesIO(), format="png")
        assert axes.title.get_parse_math() is False
