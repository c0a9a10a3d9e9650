"""Words that were retired for the field's own do not come back; the pages ``docs/migration*`` alone still know them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
RETIRED = (
    r"(?:laid|lays?|laying) (?:them |it )?end to end",
    r"(?:keeps?|kept|keeping) still",
    r"names? of (?:the )?pages",
    r"\bLesson\b",
    r"\bKin\b",
    r"\bFollower\b",
    r"\bWorkshop\b",
    r"\bMailbox\b",
    r"\bPatience\b",
    r"\bTold\b",
    r"\bSteady\w*\b",
    r"\bmend(?:s|ed|ing)?\b",
    r"[Tt]ells? nobody",
    r"whoever watches",
    r"its own former self",
)
PLACES = ("fathom", "benchmarks", "docs", "recipes/*.toml", "README.md", "CONTRIBUTING.md", "tests", ".ci", "Makefile")
NOT_SEARCHED = {"docs/migration.md", "docs/migration.zh-CN.md", "tests/ci/test_vocabulary.py"}


def rows(section: str) -> list[list[str]]:
    """Return the cells of a table of ``docs/migration.md``."""
    text = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def test_the_migration_table_names_modules_that_exist() -> None:
    for _, new in rows("Modules"):
        path = ROOT / new.replace(".", "/").replace("/{/}", "")
        assert "{" in new or path.with_suffix(".py").exists() or path.is_dir(), new


def test_the_migration_table_names_symbols_where_they_are() -> None:
    for _, new, module in rows("Classes, functions and constants of one module"):
        path = ROOT / module.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        assert re.search(rf"^(?:(?:async )?def |class )?{re.escape(new)}\b", file.read_text(), re.MULTILINE), new


def test_retired_words_stay_retired() -> None:
    pattern = re.compile("|".join(RETIRED))
    listed = subprocess.run(["git", "ls-files", *PLACES], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = []
    for name in listed.splitlines():
        if name in NOT_SEARCHED or not name.endswith((".py", ".md", ".toml", ".js", ".jinja", "Makefile", "run")):
            continue
        text = (ROOT / name).read_text(encoding="utf-8")
        found += [f"{name}: {match.group(0)!r}" for match in pattern.finditer(re.sub(r"\s+", " ", text))]
    assert not found, "\n".join(found)
