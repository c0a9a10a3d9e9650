"""The commands that install optional packages work where Fathom was installed: from a checkout or from a wheel."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from fathom import extras

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("data", "evals", "gguf", "hub", "images", "rl", "serve", "track")


def dry_run(command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a pip command from a directory, without an index and without installing anything."""
    asked = [*shlex.split(command), "--dry-run", "--no-index", "--no-deps", "--no-build-isolation", "--quiet"]
    return subprocess.run(asked, cwd=directory, capture_output=True, text=True)


def test_in_a_checkout_the_checkout_is_named_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"install -e {shlex.quote(f'{ROOT}[serve]')}" in extras.install_extra("serve")
    monkeypatch.chdir(ROOT)
    assert "install -e '.[serve]'" in extras.install_extra("serve")


def test_pip_is_the_one_of_this_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert extras.pip() == "pip"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert extras.pip() == f"{shlex.quote(sys.executable)} -m pip"
    monkeypatch.chdir(Path(sys.executable).parents[1])
    assert extras.pip() == f"{Path('bin', Path(sys.executable).name)} -m pip"


def test_the_command_is_one_that_pip_accepts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extras, "_checkout", lambda: None)
    monkeypatch.setattr(metadata, "requires", lambda name: ["pytest>=1", "pytest>=2; extra == 'images'"])
    monkeypatch.chdir(tmp_path)
    done = dry_run(extras.install_extra("images"), tmp_path)
    assert done.returncode == 0, done.stderr


def test_of_a_wheel_the_packages_of_the_extra_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_checkout", lambda: None)
    lines = ["torch>=2.11", "gguf>=0.17; extra == 'gguf'", "none>=1; sys_platform == 'none' and extra == 'gguf'"]
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    assert extras.install_extra("gguf").endswith("install 'gguf>=0.17'")


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_that_messages_name_exists(extra: str) -> None:
    assert [line for line, of in extras.requirement_lines() if of == extra]


def test_no_message_names_a_package_index_that_may_not_have_fathom() -> None:
    for path in sorted((ROOT / "fathom").rglob("*.py")):
        assert "pip install 'fathom-lm" not in path.read_text(encoding="utf-8"), path
