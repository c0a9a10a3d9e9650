"""Recipes and manifests in TOML: those of the project with hostile values, or hostile lines, in some places."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fathom.data.manifest import load_manifest
from fathom.inference.run_record import read_recipe
from fathom.pipeline.recipe import load_run_plan
from fathom.pipeline.state import run_plan_mapping, write_run_plan
from fathom.pipeline.trust import NO_TRUST, check_trust
from fathom.spec.package import check_pin
from tests.fuzz.driver import Target
from tests.fuzz.json_damage import damage
from tests.fuzz.targets.run_records import RECIPES, stays_inside

_PINS: Mapping[str, tuple[str, ...]] = {
    "package": ("evil @ https://x.invalid/a", "a\n-r b", "--index-url=x", "../x", "Evil", "ſ", "a", "networkx"),
    "version": ("1.0\n--pre", "1.*", "latest", " 1", "1.0+x", "1!2", "v1", "9" * 300),
    "sha256": ("", "a" * 64, "A" * 64, "../" * 21 + "x", "a" * 63 + "\n"),
}
VALUES = (
    *('""', '"x"', '"../../x"', '"/etc/passwd"', '"."', '"con"', '"a\\u0000b"', '"\\u202Ex"', '"天"', '"a b"'),
    *("0", "-1", "1", "9223372036854775807", "1" + "0" * 30, "0x" + "f" * 4000, "9" * 5000, "1e308", "nan", "inf"),
    *("true", "[]", "{}", "[[[[1]]]]", "[" * 200 + "]" * 200, '{kind = "x"}', '{kind = ["x"]}', "2024-02-30"),
    *(
        "1979-05-27T07:32:00Z",
        '["a", 1, {}]',
        "[" + "1," * 20_000 + "]",
        '"""\n\n"""',
        "a.b",
        "",
        "'" + "w" * 5000 + "'",
    ),
)
LINES = (
    *("[[steps]]", "[steps]", "[model]", "[problems.x]", "[problems]", "name = 3", 'kind = "grpo"', "a.b.c = 1"),
    *(".".join("a" * 5000) + " = 1", "[" + ".".join("a" * 80) + "]", '"\\u001b]0;x\\u0007" = 1', "'a\tb' = 1", "\x00"),
    *('problems = ["x"]', 'start = "later"', 'rewards = [{kind = "code", unsandboxed = true}]', "steps = 3", "= 1"),
    'rewards = [{kind = "function", target = "os:system"}]',
)


def toml(value: Any) -> str:
    """Return a value as TOML has it; null as a text, surrogates as they are (which is no TOML)."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(str(key))} = {toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps("null" if value is None else value, default=str)


class _Toml(Target):
    suffix = ".toml"
    folder_of: Path

    def start(self) -> None:
        shutil.copytree(RECIPES, self.folder / "recipes")
        self.known = {
            path.name: tomllib.loads(path.read_text("utf-8")) for path in sorted(self.folder_of.glob("*.toml"))
        }
        self.path = self.folder / "recipes" / self.folder_of.relative_to(RECIPES) / "fuzzed.toml"
        for value in self.known.values():
            self.check(self.written(value))

    def written(self, value: Any) -> bytes:
        """Return a file's content."""
        lines = [f"{json.dumps(str(key))} = {toml(inner)}\n" for key, inner in value.items()] if value else []
        return "".join(lines).encode("utf-8", "surrogatepass")

    def make(self, rng: random.Random) -> bytes:
        value = damage(rng.choice(list(self.known.values())), rng)
        data = self.written(value if isinstance(value, dict) else {"x": value})
        if rng.random() < 0.1:
            at = rng.randrange(len(data) + 1)
            data = data[:at] + rng.choice((b"\0", b"\xff", b"[[", b"=", b"\n", b"'''")) + data[at:]
        return data

    def check(self, data: bytes) -> None:
        self.path.write_bytes(data)
        with self.tolerated():
            self.read(self.path)

    def read(self, path: Path) -> None:
        """Read a file; a ``FathomError`` is no finding."""
        raise NotImplementedError


class Recipes(_Toml):
    """Recipes, with the manifests they name."""

    name = "recipes"
    folder_of = RECIPES

    def read(self, path: Path) -> None:
        load_run_plan(path)


class Manifests(_Toml):
    """Lists of sources."""

    name = "manifests"
    folder_of = RECIPES / "sources"

    def make(self, rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return super().make(rng)
        value = json.loads(json.dumps(self.known["large.toml"]))
        for _ in range(rng.choice((1, 2))):
            field = rng.choice(tuple(_PINS))
            rng.choice(value["sources"])[field] = rng.choice(_PINS[field])
        return self.written(value)

    def read(self, path: Path) -> None:
        for source in load_manifest(path).sources:
            if source.kind == "package":
                check_pin(source.package, source.version, source.sha256)


class RecipeLines(Target):
    """Recipes whose text is damaged, line by line; ``recipes`` damages their values."""

    name = "recipe_lines"
    suffix = ".toml"
    short_executions = 120

    def start(self) -> None:
        self._known = [path.read_text(encoding="utf-8") for path in sorted(RECIPES.glob("*.toml"))]
        self._path = self.folder / "recipe.toml"
        for folder in RECIPES.iterdir():
            if folder.is_dir():
                shutil.copytree(folder, self.folder / folder.name)

    def make(self, rng: random.Random) -> bytes:
        lines = rng.choice(self._known).splitlines()
        for _ in range(rng.choice((1, 1, 2, 3))):
            rng.choice((_value, _value, _value, _line, _drop, _double, _name))(lines, rng)
        text = "\n".join(lines).encode()
        if rng.random() < 0.1:
            place = rng.randrange(len(text))
            text = text[:place] + rng.randbytes(3) + text[place + rng.randrange(9) :]
        return text

    def check(self, data: bytes) -> None:
        self._path.write_bytes(data)
        with self.tolerated():
            plan = load_run_plan(self._path)
            stays_inside(plan.recipe, self.folder / "run")
            recorded = json.loads(json.dumps(run_plan_mapping(plan)))["recipe"]
            (self.folder / "run").mkdir(exist_ok=True)
            write_run_plan(self.folder / "run", plan)
            assert read_recipe(self.folder / "run") == plan.recipe, recorded
            check_trust(plan.recipe, plan.base, NO_TRUST, ())


def _fields(lines: Sequence[str]) -> list[int]:
    return [place for place, line in enumerate(lines) if re.match(r"\s*[\w.]+ *=", line)]


def _value(lines: list[str], rng: random.Random) -> None:
    place = rng.choice(_fields(lines) or [0])
    lines[place] = f"{lines[place].partition('=')[0]}= {rng.choice(VALUES)}"


def _name(lines: list[str], rng: random.Random) -> None:
    named = [place for place, line in enumerate(lines) if line.startswith("name =")]
    if named:
        lines[rng.choice(named)] = f"name = {rng.choice(VALUES[:10])}"


def _line(lines: list[str], rng: random.Random) -> None:
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(LINES))


def _drop(lines: list[str], rng: random.Random) -> None:
    del lines[rng.randrange(len(lines))]


def _double(lines: list[str], rng: random.Random) -> None:
    start = rng.randrange(len(lines))
    lines[start:start] = lines[start : start + rng.randrange(1, 12)] * rng.choice((1, 1, 2, 300))


TARGETS = (Recipes, Manifests, RecipeLines)
