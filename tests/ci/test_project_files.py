"""Workflow files, Dockerfiles and hooks name targets, files and commands that exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fathom.cli.main import make_app

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([\w.$()/-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def steps(workflow: Path) -> list[dict[str, Any]]:
    """Return the steps of all jobs."""
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_make_targets_that_exist(workflow: Path) -> None:
    called = [target for step in steps(workflow) for target in re.findall(r"\bmake ([\w./-]+)", step.get("run", ""))]
    assert called
    assert {target.replace(".venv", "$(VENV)") for target in called} <= TARGETS


def test_every_supported_python_is_tested_on_every_system() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]
    versions = ["3.11", "3.12", "3.13", "3.14"]
    assert jobs["linux"]["strategy"]["matrix"]["python"] == versions
    assert jobs["others"]["strategy"]["matrix"] == {"os": ["macos-latest", "windows-latest"], "python": versions}
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert lowest == f">={versions[0]}"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_copy_files_that_exist_and_are_not_ignored(dockerfile: Path) -> None:
    kept = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    for line in re.findall(r"^COPY (.+)$", dockerfile.read_text(), re.MULTILINE):
        for source in shlex.split(line)[:-1]:
            assert (ROOT / source).exists(), source
            assert source in kept


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_start_a_command_that_parses(dockerfile: Path) -> None:
    entry = re.search(r"^ENTRYPOINT \[(.+)\]$", dockerfile.read_text(), re.MULTILINE)
    assert entry is not None
    command = [word.strip(' "') for word in entry.group(1).split(",")]
    assert command[:2] == ["fathom", "serve"]
    result = CliRunner().invoke(make_app(), [*command[1:], "a-model", "--help"])
    assert result.exit_code == 0
    for option in (word for word in command if word.startswith("--")):
        assert option in result.output


def test_extras_that_dockerfiles_install_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for dockerfile in DOCKERFILES:
        for named in re.findall(r"\.\[([\w,]+)\]", dockerfile.read_text()):
            assert set(named.split(",")) <= extras.keys()


def test_hooks_run_what_lint_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks}
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    assert entries == set(re.findall(r"\$\(BIN\)/([\w-]+)", lint))
