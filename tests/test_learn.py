"""docs/learn.md shows what its scripts print, and they check each step against the model's own layers."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"
PAGES = ("learn.md", "learn.zh-CN.md")


@pytest.fixture(autouse=True)
def _examples_are_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in ("learn_shapes", "learn_balance"):
        sys.modules.pop(name, None)


def shown(page: str, script: str) -> str:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    command = f"python docs/examples/{script}.py"
    found = re.search(rf"<!-- run: {command} -->\n```console\n\$ {command}\n(.*?)\n```", text, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("script", ["learn_cache", "learn_mla", "learn_moe", "learn_answers"])
def test_a_page_shows_what_its_script_prints(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.strip().splitlines())
    for page in PAGES:
        assert shown(page, script) == printed


def test_pictures_and_links_of_the_pages_exist() -> None:
    for page in PAGES:
        links = re.findall(r"\]\(([^)#]+)", (ROOT / "docs" / page).read_text(encoding="utf-8"))
        assert sum(link.endswith(".svg") for link in links) == 4
        assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


@pytest.mark.slow
def test_balance_spreads_the_load() -> None:
    from fathom.model.moe.balance import max_load

    module = runpy.run_path(str(EXAMPLES / "learn_balance.py"))
    busiest = {name: max_load(module["train"](router)[0][-20:].mean(0)) for name, router in module["ROUTERS"].items()}
    none, loss, bias = busiest.values()
    assert none > 2 * loss
    assert none > 2 * bias
