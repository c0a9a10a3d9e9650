"""SECURITY.md promises what the code keeps: the defaults it names, and tests that exist."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
MODULES = {
    "Limits": "fathom.serve.settings",
    "SandboxLimits": "fathom.posttrain.sandbox",
    "template_process": "fathom.chat",
    "download": "fathom.data.fetch",
    "members": "fathom.data.archive",
}
UNITS = {"": 1, "s": 1, "KiB": 1 << 10, "MiB": 1 << 20}
ROWS = re.findall(r"^\| ([^|]+) \| ([\d.]+) ?(KiB|MiB|s|) \| `(\w+)\.(\w+)`[^|]*\|$", TEXT, re.M)


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[3]}.{row[4]}" for row in ROWS])
def test_security_a_default_is_what_the_code_has(row: tuple[str, str, str, str, str]) -> None:
    _, value, unit, owner, name = row
    if owner.islower():
        kept = getattr(importlib.import_module(f"{MODULES[owner]}.{owner}"), name)
    else:
        kept = getattr(getattr(importlib.import_module(MODULES[owner]), owner)(), name)
    in_mebibytes = name.lower().endswith("_mib")
    assert float(value) * (1 if in_mebibytes else UNITS[unit]) == kept


def test_security_every_row_of_the_defaults_is_checked() -> None:
    table = TEXT.partition("## What is bounded by default")[2].partition("Beside these")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(ROWS) == len(rows) - 1 > 15


def test_security_every_test_that_is_named_exists_and_is_found_by_its_name() -> None:
    named = re.findall(r"`(tests/[\w/.]+)`", TEXT)
    assert len(named) > 10
    for name in named:
        path = ROOT / name
        assert path.exists(), name
        files = [path] if path.is_file() else list(path.rglob("test_*.py"))
        assert any("security" in file.name or "security" in file.read_text(encoding="utf-8") for file in files), name


def test_security_the_flags_that_are_named_exist() -> None:
    asked = [
        ("serve", r"--(?:allowed|api|trusted|share|head|body|write|connections|max)[\w-]*"),
        ("train", r"--(?:allow-code|unsandboxed)"),
    ]
    for verb, pattern in asked:
        shown = subprocess.run(
            [sys.executable, "-m", "fathom", verb, "--help"], capture_output=True, text=True, env={"COLUMNS": "200"}
        ).stdout
        flags = set(re.findall(pattern, TEXT))
        assert flags
        assert [flag for flag in sorted(flags) if flag not in shown] == []
