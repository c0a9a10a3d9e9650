"""Which library is chosen for products: by the measured rates, once, and the same for every process."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from fathom.errors import SpecError
from fathom.products import VARIABLE, ProductChoice, choice_of, forced_choice, kept_choice


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FATHOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def never() -> dict[str, float]:
    raise AssertionError("measured again")


@pytest.mark.parametrize(
    ("gflops", "library", "bfloat16"),
    [
        ({"blas": 200, "onednn": 430, "bfloat16": 380}, "onednn", True),
        ({"blas": 150, "onednn": 115, "bfloat16": 80}, "blas", False),
        ({"blas": 100, "onednn": 105}, "blas", False),
        ({"blas": 100, "onednn": 150, "bfloat16": 110}, "onednn", False),
        ({"blas": 100, "bfloat16": 600}, "blas", True),
    ],
)
def test_the_faster_library_is_chosen_by_a_margin(gflops: dict[str, float], library: str, bfloat16: bool) -> None:
    choice = ProductChoice.of(gflops)
    assert (choice.library, choice.bfloat16) == (library, bfloat16)


def test_the_variable_chooses_without_a_measurement() -> None:
    assert forced_choice({}) is None
    assert forced_choice({VARIABLE: " "}) is None
    assert forced_choice({VARIABLE: "blas"}) == ProductChoice()
    assert forced_choice({VARIABLE: "onednn, bfloat16"}) == ProductChoice(library="onednn", bfloat16=True)
    for bad in ("mkl", "bfloat16", "blas,onednn", "blas,bfloat16,"):
        with pytest.raises(SpecError, match=r"FATHOM_PRODUCTS: cannot be .* set it to blas, onednn"):
            forced_choice({VARIABLE: bad})


def test_a_choice_is_measured_once_for_each_version_of_torch(cache: Path) -> None:
    assert kept_choice("2.13") is None
    first = choice_of("2.13", lambda: {"blas": 100.04, "onednn": 300.0})
    assert first == ProductChoice(library="onednn", gflops={"blas": 100.0, "onednn": 300.0})
    assert choice_of("2.13", never) == first == kept_choice("2.13")
    assert choice_of("2.14", lambda: {"blas": 100.0}).library == "blas"
    assert len(list(cache.rglob("*.json"))) == 2


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"gflops": 3}', '{"gflops": {"blas": "x"}}', '{"gflops": {}}'])
def test_a_damaged_record_is_measured_again(cache: Path, damage: str) -> None:
    first = choice_of("2.13", lambda: {"blas": 100.0, "onednn": 300.0})
    (record,) = cache.rglob("*.json")
    record.write_text(damage)
    assert kept_choice("2.13") is None
    assert choice_of("2.13", lambda: {"blas": 100.0, "onednn": 300.0}) == first
    assert json.loads(record.read_text())["gflops"] == {"blas": 100.0, "onednn": 300.0}


def test_those_who_ask_at_once_get_the_same_choice(cache: Path) -> None:
    """Measurements that disagree: whoever is first decides."""
    start, found, asked = threading.Barrier(4), [], []

    def ask(rate: float) -> None:
        def measure() -> dict[str, float]:
            asked.append(rate)
            time.sleep(0.02)
            return {"blas": 100.0, "onednn": rate}

        start.wait()
        found.append(choice_of("2.13", measure))

    threads = [threading.Thread(target=ask, args=(rate,)) for rate in (50.0, 100.0, 150.0, 200.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    assert found == [ProductChoice.of({"blas": 100.0, "onednn": asked[0]})] * 4


def test_where_nothing_can_be_kept_pytorchs_own_library_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("FATHOM_CACHE", str(file / "below"))
    assert choice_of("2.13", never) == ProductChoice()
    assert "set FATHOM_CACHE to a folder that can be, or FATHOM_PRODUCTS to blas or onednn" in caplog.text
    assert os.listdir(tmp_path) == ["file"]
