"""Recipes come with Fathom, from a checkout and from a wheel, and are found by name."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fathom.errors import SpecError
from fathom.pipeline import shipped_recipes
from fathom.pipeline.recipe import load_run_plan
from fathom.pipeline.shipped_recipes import find_recipe, summary

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("given", ["quickstart", "quickstart.toml", "recipes/quickstart.toml"])
def test_a_recipe_is_found_by_name_from_anywhere(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(Path(given)) == ROOT / "recipes" / "quickstart.toml"
    assert load_run_plan(Path(given)).recipe.name == "quickstart"


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("")
    assert find_recipe(Path("quickstart")) == Path("quickstart")


@pytest.mark.parametrize(
    "given", ["quick", "elsewhere/quickstart.toml", "quickstart.json", "recipes/../quickstart.toml"]
)
def test_anything_else_is_refused_with_the_names(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=r"no such file; check the path, or give one of distill, .*quickstart"):
        find_recipe(Path(given))


def test_every_recipe_says_in_a_sentence_what_it_is() -> None:
    for path in shipped_recipes.shipped_recipes().values():
        assert 15 < len(summary(path)) < 100, path


@pytest.mark.slow
def test_the_wheel_holds_them(tmp_path: Path) -> None:
    """The wheel is built and unpacked, and its package finds its own recipes."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = (
        "from fathom.pipeline.recipe import load_run_plan as p; from pathlib import Path; print(p(Path('r1')).base)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path / "site", capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "site" / "fathom" / "recipes"), done.stderr
