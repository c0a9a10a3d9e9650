import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from fathom.checkpoint.hub import fetch_model
from fathom.cli.models import models
from fathom.errors import SpecError
from fathom.families import PRESETS
from fathom.inference.catalog import catalog
from fathom.plan import short_count
from tests.fuzz import gguf_files
from tests.hub_server import serving


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the hub's cache of this test, empty at first."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("FATHOM_CACHE", str(tmp_path / "fathom"))
    return tmp_path / "hf"


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(models)
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_json_lists_every_preset_with_its_numbers() -> None:
    rows = {row["name"]: row for row in json.loads(run("--json"))}
    assert list(rows) == [*catalog(), *PRESETS]
    v2 = rows["deepseek-v2"]
    assert (v2["total_parameters"], v2["cache_bytes_per_token"]) == (235_741_434_880, 69_120)
    assert (v2["cache_bytes_per_token_int8"], v2["cache_bytes_per_token_int6"]) == (35_520, 25_920)
    assert (v2["layers"], v2["attention"], v2["context"]) == (60, "MLA-512+64", 163840)
    assert v2["unconfirmed"] == []
    assert rows["deepseek-math-7b"]["unconfirmed"]


def test_the_table_shows_sizes_and_marks_unconfirmed_rows() -> None:
    lines = {line.split()[0]: line for line in run().splitlines() if line.strip()}
    assert set(PRESETS) <= set(lines)
    shown = ["deepseek-v2", "deepseek_v2", "236B", "20.9B", "60", "MLA-512+64", "69,120", "163,840"]
    assert lines["deepseek-v2"].split() == shown
    assert lines["deepseek-coder-33b"].split()[1] == "*"
    assert "not confirmed" in lines["*"]


def test_the_models_ready_by_name_come_first_with_their_licence() -> None:
    lines = run().splitlines()
    assert lines[0].startswith("ready by name")
    assert lines[1].split()[:5] == ["smollm2-135m", "135M", "98.4", "MB", "Apache-2.0"]
    row = json.loads(run("--json"))[0]
    assert (row["ready"], row["total_parameters"], row["bytes"]) == (True, 134_515_008, 98_362_432)


def test_models_in_the_hubs_cache_are_listed(caches: Path, tmp_path: Path) -> None:
    assert "holds no model that Fathom opens; fathom chat owner/name fetches one" in run("--cached")
    whole = gguf_files.write_model(tmp_path / "whole.gguf")
    (tmp_path / "parts").mkdir()
    parts = gguf_files.split(whole, tmp_path / "parts", 8)
    files = {"tiny-Q8_0.gguf": whole.read_bytes(), "tiny-IQ2_XXS.gguf": b"x", "mmproj-F16.gguf": b"x"}
    files |= {f"BF16/{part.name.replace('tiny', 'tiny-BF16')}": part.read_bytes() for part in parts}
    with serving(files) as hub:
        for tag in ("Q8_0", "BF16"):
            fetch_model(f"owner/tiny:{tag}", endpoint=hub.url)
    lines = [line.split() for line in run("--cached").splitlines()]
    assert [line[0] for line in lines[1:]] == ["owner/tiny:BF16", "owner/tiny:Q8_0"]
    rows = json.loads(run("--cached", "--json"))
    assert [row["name"] for row in rows] == ["owner/tiny:BF16", "owner/tiny:Q8_0"]
    assert rows[1]["bytes"] == whole.stat().st_size
    next(caches.rglob("*-00002-of-*")).unlink()
    assert [row["name"] for row in json.loads(run("--cached", "--json"))] == ["owner/tiny:Q8_0"]


def test_the_weights_of_a_large_cached_model_are_in_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    large = SimpleNamespace(name="owner/large", nbytes=4_500_000_000)
    monkeypatch.setattr("fathom.inference.loading.fetched_models", lambda cache: [large])
    assert run("--cached").splitlines()[1].split() == ["owner/large", "4.5", "GB"]


def test_one_family_only() -> None:
    rows = json.loads(run("--json", "--family", "mixtral"))
    assert [row["name"] for row in rows] == ["mixtral-8x7b"]


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"--family: no preset is of family 'gpt'; use one of deepseek, deepseek_v2"):
        run("--family", "gpt")


@pytest.mark.parametrize(
    ("count", "text"),
    [(5, "5"), (12_345, "12.3K"), (16.1e6, "16.1M"), (999_999_999, "1.00B"), (99.99e9, "100B"), (671e9, "671B")],
)
def test_counts_are_written_in_three_digits(count: float, text: str) -> None:
    assert short_count(count) == text
