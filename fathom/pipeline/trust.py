"""What a recipe may make a run do is up to the one who runs it: code and programs as this user need a permission."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fathom.errors import SpecError
from fathom.isolated import import_path
from fathom.spec.recipe import AnswersStep, GrpoStep, Recipe, Step, TasksStep
from fathom.spec.rewards import CodeReward, FunctionReward, RewardSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What one call of a run may do beyond reading, fetching and computing; a recipe or a record cannot say it.

    ``code``: functions that the recipe names are imported and called as this user. ``unsandboxed``: programs that
    models write run as this user, with its files and its network.
    """

    code: bool = False
    unsandboxed: bool = False


NO_TRUST = Trust()


class CodeNotAllowedError(SpecError):
    """A recipe names functions, and the run may not call any."""


def check_trust(recipe: Recipe, base: Path, trust: Trust, done: Collection[str]) -> None:
    """Refuse a recipe whose steps, but for those that are done, would run functions that ``trust`` does not cover.

    Raises:
        CodeNotAllowedError: naming the functions of the first such step and the files they are found in.
    """
    for step, rewards in judging_steps(recipe, done):
        check_functions(step, rewards, base, trust)


def check_functions(step: Step, rewards: Sequence[RewardSpec], base: Path, trust: Trust) -> None:
    """Refuse functions as rewards unless the run may call code of its recipe, which lies in ``base``.

    Raises:
        CodeNotAllowedError: it may not; nothing was imported to say which files the functions are in.
    """
    functions = [reward for reward in rewards if isinstance(reward, FunctionReward)]
    if not functions or trust.code:
        return
    named = " and ".join(f"{reward.target!r} ({_place(reward.target, base)})" for reward in functions)
    raise CodeNotAllowedError(
        f"steps.{step.name}.rewards.{functions[0].name}.target",
        f"would run {named} as you, with your files and your network",
        "read the code, and add --allow-code if you trust it (in Python: trust=Trust(code=True))",
    )


def untried_functions(recipe: Recipe, trust: Trust) -> Iterator[str]:
    """Yield a line where a check may not import the functions that a recipe names."""
    rewards = [reward for _, each in judging_steps(recipe, ()) for reward in each]
    names = list(dict.fromkeys(reward.target for reward in rewards if isinstance(reward, FunctionReward)))
    if names and not trust.code:
        yield f"not tried: {', '.join(names)}; if you trust the code, add --allow-code here and when it trains"


def runs_programs(recipe: Recipe, done: Collection[str]) -> bool:
    """Whether a step that is not done runs programs that models write."""
    return any(isinstance(reward, CodeReward) for _, rewards in judging_steps(recipe, done) for reward in rewards)


def code_folders(base: Path) -> list[Path]:
    """Return where functions are looked for first: beside their recipe, and in the working directory."""
    return list(dict.fromkeys((base.resolve(), Path.cwd())))


def judging_steps(recipe: Recipe, done: Collection[str]) -> Iterator[tuple[Step, Sequence[RewardSpec]]]:
    """Yield the steps that judge answers and are not done, with their rewards."""
    for step in recipe.steps:
        if step.name not in done and isinstance(step, GrpoStep | AnswersStep | TasksStep):
            yield step, step.rewards


def _place(target: str, base: Path) -> str:
    *packages, module = target.partition(":")[0].split(".")
    for folder in (*code_folders(base), *map(Path, import_path())):
        inside = folder.joinpath(*packages)
        for file in (inside / f"{module}.py", inside / module / "__init__.py"):
            if file.is_file():
                return f"in {file}"
    return "of the module that Python finds by this name"
