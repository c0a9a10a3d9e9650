"""Code of a recipe runs only where the command says so, and reward processes import nothing that lies about."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fathom.cli.diagnosis.imports import finish_imports, start_imports
from fathom.errors import Interrupted, SpecError
from fathom.isolated import isolated_python, minimal_environment
from fathom.pipeline import reward_functions
from fathom.pipeline import run as run_module
from fathom.pipeline.context import RunPlan, StepContext
from fathom.pipeline.recipe import load_run_plan
from fathom.pipeline.trust import CodeNotAllowedError, Trust
from fathom.posttrain.rewards import judge as judge_module
from fathom.posttrain.rewards import worker_client
from fathom.posttrain.rewards.base import RewardInput
from fathom.posttrain.rewards.judge import Judge
from fathom.progress import NULL_PROGRESS
from fathom.spec.problem import Problem, SymbolicProblems
from fathom.spec.recipe import Recipe, TasksStep
from fathom.spec.rewards import AccuracyReward, CodeReward, FunctionReward
from tests.command_line import Call

RECIPE = """
name = "handed-over"

[[steps]]
kind = "open"
model = "{model}"

[[steps]]
kind = "tasks"
problems = [{{ kind = "problems", path = "sums.jsonl" }}]
count = 1
max_tokens = 2
rewards = [
    {{ kind = "accuracy" }},
    {{ kind = "function", name = "own", target = "my_rewards:length" }},
]
"""
CODE = """
import os
from pathlib import Path

Path(__file__).with_name("ran").touch()

def length(prompt, answer, reference):
    return len(answer)

def secret(prompt, answer, reference):
    return float(os.environ.get("HF_TOKEN") == "secret")
"""
ANSWER = RewardInput(prompt="p", answer="7", problem=Problem(id="1", task="t", question="q", answer="7"))


@pytest.fixture
def handed_over(bench: Any) -> Path:
    """A recipe with a module beside it, which says when it was imported."""
    bench.write("sums.jsonl", [{"question": "two plus two?", "answer": "four", "id": "a", "split": "held_out"}])
    (bench.base / "my_rewards.py").write_text(CODE)
    path: Path = bench.base / "recipe.toml"
    path.write_text(RECIPE.format(model=bench.published))
    return path


@pytest.fixture
def lying_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with modules that end whoever imports them; Python's path has it as ``python -c`` does."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    for module in ("json", "resource", "signal", "selectors", "math", "colorsys", "fathom", "typing"):
        (folder / f"{module}.py").write_text(f"import os\nopen({str(folder / 'ran')!r}, 'w')\nos._exit(3)\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", ["", *sys.path, str(folder)])
    yield folder
    assert not (folder / "ran").exists()


def test_a_recipe_cannot_run_code_unless_the_command_allows_it(handed_over: Path, tmp_path: Path, call: Call) -> None:
    out, marker = tmp_path / "the run", handed_over.with_name("ran")
    arguments = ("train", handed_over, "--out", out, "--set", "tasks.count=2", "--device", "cpu")
    done = call(*arguments)
    assert done.code == 2
    assert "steps.tasks.rewards.own.target: would run 'my_rewards:length'" in done.err
    assert f"(in {handed_over.with_name('my_rewards.py')}) as you, with your files and your network" in done.err
    assert not out.exists()
    assert not marker.exists()
    command = shlex.split(done.err.partition("if you trust it: ")[2])
    assert command == ["fathom", *map(str, arguments), "--allow-code"]
    assert call(*command[1:]).code == 0
    assert marker.exists()
    assert json.loads((out / "tasks.json").read_text())["tasks"]["sums"]["base"]["rewards"]["own"] >= 0


def test_a_resume_of_a_directory_needs_the_permission_again(handed_over: Path, tmp_path: Path, call: Call) -> None:
    out, marker = tmp_path / "run", handed_over.with_name("ran")
    assert call("train", handed_over, "--out", out, "--allow-code", "--unsandboxed").code == 0
    recorded = (out / "recipe.json").read_text() + (out / "state.json").read_text()
    assert not any(word in recorded for word in ("allow", "trust", "unsandboxed"))
    state = json.loads((out / "state.json").read_text())
    state["steps"]["tasks"]["status"] = "interrupted"
    (out / "state.json").write_text(json.dumps(state))
    marker.unlink()
    done = call("train", handed_over, "--out", out, "--resume")
    assert done.code == 2
    assert f"--out {shlex.quote(str(out))} --resume --allow-code" in done.err
    assert not marker.exists()


def test_what_to_continue_with_names_the_flags_that_were_given(
    handed_over: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any, **options: Any) -> None:
        assert options["trust"] == Trust(code=True, unsandboxed=True)
        raise Interrupted("SIGTERM")

    monkeypatch.setattr(run_module, "run", interrupted)
    out = tmp_path / "run"
    flags = ("--set", "tasks.count=2", "--device", "cpu", "--allow-code", "--unsandboxed")
    done = call("train", handed_over, "--out", out, "--restart", *flags)
    assert done.code == 130
    command = shlex.split(done.err.partition("continue with: ")[2])
    assert command == ["fathom", "train", "--out", str(out), "--resume", *flags[2:]]


def test_python_allows_nothing_by_default(handed_over: Path, tmp_path: Path) -> None:
    plan = load_run_plan(handed_over)
    with pytest.raises(CodeNotAllowedError, match=r"trust=Trust\(code=True\)"):
        run_module.run(plan, tmp_path / "run", cache_dir=tmp_path, trust=Trust(unsandboxed=True))
    context = StepContext(
        plan=plan, directory=tmp_path / "run", cache_dir=tmp_path, device="cpu", progress=NULL_PROGRESS
    )
    step = plan.recipe.steps[1]
    with pytest.raises(CodeNotAllowedError, match="my_rewards:length"):
        reward_functions.open_judge(context, step, [FunctionReward(target="my_rewards:length")], seconds=1.0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("trusted", [False, True])
def test_programs_leave_the_sandbox_only_by_the_caller(
    trusted: bool, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(judge_module, "check_sandbox", lambda *, unsandboxed: asked.append(unsandboxed))
    step = TasksStep(problems=(SymbolicProblems(),), max_tokens=1)
    recipe = Recipe(name="x", steps=(step,))
    context = StepContext(
        plan=RunPlan(recipe=recipe, manifests={}, base=bench.base),
        directory=bench.base,
        cache_dir=bench.base,
        device="cpu",
        progress=NULL_PROGRESS,
        trust=Trust(unsandboxed=trusted),
    )
    with reward_functions.open_judge(context, step, [CodeReward()], seconds=1.0):
        pass
    assert asked == [trusted]


def test_a_recipe_that_wants_programs_out_of_the_sandbox_is_refused(handed_over: Path) -> None:
    with pytest.raises(SpecError, match=r"rewards\[0\]\.unsandboxed: .*--unsandboxed"):
        load_run_plan(handed_over, overrides=['tasks.rewards=[{kind="code", unsandboxed=true}]'])
    with pytest.raises(SpecError, match=r"(?s)rewards\[0\]\.unsandboxed: .*rewards\[0\]\.weight: "):
        load_run_plan(handed_over, overrides=['tasks.rewards=[{kind="code", unsandboxed=true, weight="x"}]'])


def test_rules_import_nothing_from_where_one_stands(lying_about: Path) -> None:
    with Judge([AccuracyReward(method="exact")]) as judge:
        assert judge.judge([ANSWER])[0].total == 1.0


def test_the_doctor_imports_nothing_from_where_one_stands(lying_about: Path) -> None:
    assert finish_imports(start_imports([("colorsys",)])) == ({}, {})


def test_an_isolated_python_has_the_path_of_this_one_without_the_working_directory(lying_about: Path) -> None:
    program = "import fathom, sys; print(fathom.__file__, sys.argv[1:], sys.flags.isolated, *sys.path, sep='\\n')"
    done = subprocess.run(isolated_python(program, "a", "b"), capture_output=True, text=True, check=True)
    package, arguments, isolated, *path = done.stdout.splitlines()
    assert Path(package).parent == Path(worker_client.__file__).parents[2]
    assert (arguments, isolated) == ("['a', 'b']", "1")
    assert str(lying_about) not in path
    assert "" not in path


def test_a_function_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    with Judge([FunctionReward(target="my_rewards:length")]) as judge:
        assert judge.judge([ANSWER])[0].total == 1.0


def test_secrets_reach_no_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environments: list[Any] = []
    start = subprocess.Popen

    def popen(*given: Any, **options: Any) -> Any:
        environments.append(options["env"])
        return start(*given, **options)

    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(worker_client.subprocess, "Popen", popen)
    (tmp_path / "my_rewards.py").write_text(CODE)
    rewards = (AccuracyReward(method="exact"), FunctionReward(target="my_rewards:secret"))
    with Judge(rewards, code_folders=[tmp_path]) as judge:
        assert dict(judge.judge([ANSWER])[0].parts) == {"accuracy": 1.0, "function": 1.0}
    assert len(environments) == 2
    assert None in environments  # a function of one's own has what one's shell has
    assert minimal_environment() in environments
    assert "HF_TOKEN" not in minimal_environment()
