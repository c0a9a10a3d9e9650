"""Recipes and manifests in TOML: those of the project with hostile values in some places."""

from __future__ import annotations

import json
import math
import random
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fathom.data.manifest import load_manifest
from fathom.pipeline.recipe import load_run_plan
from fathom.spec.package import check_pin
from tests.fuzz.driver import Target
from tests.fuzz.json_damage import damage

_RECIPES = Path(__file__).parents[3] / "recipes"
_PINS: Mapping[str, tuple[str, ...]] = {
    "package": ("evil @ https://x.invalid/a", "a\n-r b", "--index-url=x", "../x", "Evil", "ſ", "a", "networkx"),
    "version": ("1.0\n--pre", "1.*", "latest", " 1", "1.0+x", "1!2", "v1", "9" * 300),
    "sha256": ("", "a" * 64, "A" * 64, "../" * 21 + "x", "a" * 63 + "\n"),
}


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
        shutil.copytree(_RECIPES, self.folder / "recipes")
        self.known = {
            path.name: tomllib.loads(path.read_text("utf-8")) for path in sorted(self.folder_of.glob("*.toml"))
        }
        self.path = self.folder / "recipes" / self.folder_of.relative_to(_RECIPES) / "fuzzed.toml"
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
    folder_of = _RECIPES

    def read(self, path: Path) -> None:
        load_run_plan(path)


class Manifests(_Toml):
    """Lists of sources."""

    name = "manifests"
    folder_of = _RECIPES / "sources"

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


TARGETS = (Recipes, Manifests)
