"""Python, Fathom and its packages: what is installed, too old or not importable, and what an extra brings."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import fathom
from fathom.cli.diagnosis.finding import Finding
from fathom.extras import DISTRIBUTION, install_extra, pip, requirement_lines

BRINGS: Mapping[str, str] = {
    "data": "near-duplicate removal, Parquet and Zstandard",
    "evals": "lm-evaluation-harness's tasks",
    "gguf": "GGUF files written, and read in types that Fathom itself does not read",
    "hub": "models by owner/name from the hub",
    "images": "images in conversations and training",
    "rl": "generated problems, judging of mathematics, and the sandbox for programs",
    "serve": "fathom serve, and answers by a schema",
    "track": "TensorBoard's event files",
    "trackio": "runs in Trackio's local database",
    "wandb": "runs on Weights & Biases",
    "dev": "the tests and tools of contributors",
}
_NOT_IMPORTED = frozenset({"dev"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Requirement:
    """A package that Fathom or one of its extras asks for; ``wanted`` is the range of versions, such as >=2.11."""

    name: str
    wanted: str
    extra: str
    installed: str | None
    too_old: bool
    module: str | None

    @property
    def shown(self) -> str:
        """Name and version."""
        return f"{self.name} {self.installed or 'missing'}" + (f" ({self.wanted} needed)" if self.too_old else "")


def read_requirements() -> list[Requirement]:
    """Return every package that pyproject.toml or the installed metadata names and that this machine can use."""
    return [found for line, extra in requirement_lines() if (found := _read(line, extra)) is not None]


def package_findings(requirements: list[Requirement], failed: Mapping[str, str]) -> Iterator[Finding]:
    """Yield findings about packages; ``failed`` says why modules could not be imported."""
    python = f"{platform.python_version()} {platform.python_implementation()}, {sys.executable}"
    yield Finding("fathom", "Python", python)
    yield Finding("fathom", "Fathom", f"{fathom.__version__} in {Path(fathom.__file__).parent}")
    yield Finding("fathom", "platform", platform.platform())
    if not requirements:
        problem = "neither pyproject.toml nor installed metadata was found"
        yield Finding("packages", DISTRIBUTION, problem, "broken", f"{pip()} install --force-reinstall {DISTRIBUTION}")
    for requirement in requirements:
        if not requirement.extra:
            yield _of_package(requirement, failed)
    extras = dict.fromkeys(requirement.extra for requirement in requirements if requirement.extra)
    for extra in extras:
        yield _of_extra(extra, [each for each in requirements if each.extra == extra], failed)


def modules_to_try(requirements: list[Requirement]) -> list[list[str]]:
    """Return the modules whose import is worth trying, in groups that may run at once: torch takes longest."""
    found = [each.module for each in requirements if each.module and each.installed and each.extra not in _NOT_IMPORTED]
    others = [module for module in dict.fromkeys(found) if module != "torch"]
    return [["torch"] if "torch" in found else [], others[::2], others[1::2]]


def _of_package(requirement: Requirement, failed: Mapping[str, str]) -> Finding:
    again = f"{pip()} install --force-reinstall '{requirement.name}{requirement.wanted}'"
    reason = failed.get(requirement.module or "")
    installed = requirement.installed
    if installed is None:
        problem = "missing, and nothing works without it"
    elif reason is not None:
        problem = f"{installed}, not importable ({reason})"
    elif requirement.too_old:
        problem = f"{installed} is not {requirement.wanted}"
    else:
        return Finding("packages", requirement.name, installed)
    return Finding("packages", requirement.name, problem, "broken", again)


def _of_extra(extra: str, members: list[Requirement], failed: Mapping[str, str]) -> Finding:
    brings = BRINGS.get(extra, f"the extra {extra}")
    wrong = [each for each in members if each.installed and (each.too_old or (each.module or "") in failed)]
    if wrong:
        reasons = [
            f"{each.name} {each.installed} is not {each.wanted}"
            if each.too_old
            else f"{each.name} {each.installed} is not importable ({failed[each.module or '']})"
            for each in wrong
        ]
        packages = " ".join(f"'{each.name}{each.wanted}'" for each in wrong)
        return Finding("extras", extra, "; ".join(reasons), "broken", f"{pip()} install --force-reinstall {packages}")
    missing = [each for each in members if each.installed is None]
    shown = ", ".join(each.shown for each in members)
    if missing:
        return Finding("extras", extra, shown, "missing", f"{brings}: {install_extra(extra)}")
    return Finding("extras", extra, shown)


def _read(line: str, extra: str) -> Requirement | None:
    """Read a requirement; None where it is Fathom itself, or not for this machine."""
    found = _NAME.match(line)
    if found is None or found.group() == DISTRIBUTION:
        return None
    name, wanted, too_old = found.group(), "", False
    try:
        installed: str | None = metadata.version(name)
    except PackageNotFoundError:
        installed = None
    try:
        from packaging.requirements import Requirement as Parsed
    except ImportError:  # versions are then not compared
        pass
    else:
        parsed = Parsed(line)
        if parsed.marker is not None and not parsed.marker.evaluate({"extra": extra}):
            return None
        wanted = str(parsed.specifier)
        too_old = installed is not None and not parsed.specifier.contains(installed, prereleases=True)
    return Requirement(name, wanted, extra, installed, too_old, _module(name) if installed else None)


def _module(name: str) -> str | None:
    """Return the module that a distribution is imported as."""
    distribution = metadata.distribution(name)
    listed = (distribution.read_text("top_level.txt") or "").split()
    files = distribution.files or []
    listed += [file.parts[0] for file in files if len(file.parts) == 2 and file.parts[1] == "__init__.py"]
    names = [each for each in dict.fromkeys(listed) if each.isidentifier() and not each.startswith("_")]
    own = re.sub(r"[-.]+", "_", name).lower()
    return next((each for each in names if each.lower() == own), names[0] if names else None)
