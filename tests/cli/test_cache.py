"""``fathom cache``: what is kept, whose it is, and removing no more than was fetched."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest

import fathom
from fathom.cache import cache_directory
from fathom.errors import FathomError
from fathom.inference.catalog import catalog

MODEL = next(iter(catalog().values()))
PACKAGE = "a" * 64


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    for path, size in (
        (root / "models" / MODEL.member_sha256 / "weights.gguf", 3000),
        (root / PACKAGE / "tasks-1.0-py3-none-any.whl", 500),
        (root / "hub" / "models--own--tiny" / "snapshots" / "x" / "config.json", 20),
        (root / "notes.txt", 7),
        (root / "mine" / "important.txt", 9),
        (tmp_path / "hf" / "hub" / "models--owner--name" / "refs" / "main", 40),
        (tmp_path / "elsewhere" / "kept.txt", 5),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    (root / ("b" * 64)).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    old = time.time() - 40 * 86_400
    os.utime(root / PACKAGE / "tasks-1.0-py3-none-any.whl", (old, old))
    monkeypatch.setenv("FATHOM_CACHE", str(root))
    monkeypatch.setattr("fathom.inference.cache_contents.hub_cache", lambda: tmp_path / "hf" / "hub")
    return root


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_what_is_kept_is_listed_with_whose_it_is(cache: Path, call) -> None:
    rows = {row["name"]: row for row in json.loads(call("cache", "list", "--json").out)}
    assert {name: (row["kind"], row["owned"], row["bytes"]) for name, row in rows.items()} == {
        MODEL.name: ("model", True, 3000),
        "tasks-1.0-py3-none-any.whl": ("package", True, 500),
        "own/tiny": ("hub", True, 20),
        "notes.txt": ("unknown", False, 7),
        "mine": ("unknown", False, 9),
        "owner/name": ("hub", False, 40),
        "b" * 64: ("unknown", False, 0),
    }
    assert rows["tasks-1.0-py3-none-any.whl"]["age_seconds"] >= 40 * 86_400
    done = call("cache", "list")
    assert "40 d" in done.out
    assert "not Fathom's" in done.out
    assert "hf cache rm" in done.err


@pytest.mark.parametrize(
    ("chosen", "removed"),
    [
        (("--kind", "model"), {"models/" + MODEL.member_sha256, "models/" + MODEL.member_sha256 + "/weights.gguf"}),
        (("--older-than", "30d"), {PACKAGE, PACKAGE + "/tasks-1.0-py3-none-any.whl"}),
        (("tasks-1.0-py3-none-any.whl",), {PACKAGE, PACKAGE + "/tasks-1.0-py3-none-any.whl"}),
        (("--kind", "model", "--older-than", "30d"), set()),
    ],
)
def test_what_is_chosen_is_removed_and_nothing_else(cache: Path, call, chosen, removed: set[str]) -> None:
    before, elsewhere = everything(cache), everything(cache.parent / "elsewhere")
    assert call("cache", "clean", *chosen, "--yes").code == 0
    assert before - everything(cache) == removed
    assert everything(cache.parent / "elsewhere") == elsewhere


def test_all_leaves_what_fathom_did_not_put_there(cache: Path, call) -> None:
    assert call("cache", "clean", "--all", "--yes").code == 0
    assert everything(cache) == {"models", "hub", "notes.txt", "mine", "mine/important.txt", "b" * 64}
    assert (cache.parent / "elsewhere" / "kept.txt").exists()
    assert (cache.parent / "hf" / "hub" / "models--owner--name").exists()
    assert "nothing to remove" in call("cache", "clean", "--all", "--yes").err


def test_refusals_say_what_to_do(cache: Path, call, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(cache)
    call("cache", "clean").refused("does not say what to remove; give names, --kind")
    call("cache", "clean", "owner/name").refused("hf cache rm model/owner/name")
    call("cache", "clean", "notes.txt").refused("was not put there by Fathom")
    call("cache", "clean", "none").refused("none: is not in the cache; fathom cache list")
    call("cache", "clean", "--kind", "data").refused("--kind: unknown value 'data'", "hub, model, package")
    call("cache", "clean", "--older-than", "soon").refused("'soon' is no age; give one such as 12h")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    done = call("cache", "clean", "--all")
    assert (done.code, "cannot ask; add --yes" in done.err) == (2, True)
    assert everything(cache) == before


def test_one_rule_says_where_it_is(tmp_path: Path) -> None:
    home = Path.home()
    assert cache_directory({}) == home / ".cache" / "fathom"
    assert cache_directory({"XDG_CACHE_HOME": "/x"}) == Path("/x/fathom")
    assert cache_directory({"XDG_CACHE_HOME": "/x", "FATHOM_CACHE": "/y"}) == Path("/y")
    assert cache_directory({"FATHOM_CACHE": "~/y"}) == home / "y"
    assert cache_directory({"FATHOM_CACHE": ""}) == home / ".cache" / "fathom"


def test_the_library_opens_from_the_same_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own" / "models" / MODEL.member_sha256 / Path(MODEL.member).name
    file.parent.mkdir(parents=True)
    with file.open("wb") as sparse:
        sparse.truncate(MODEL.member_bytes)
    monkeypatch.setenv("FATHOM_CACHE", str(tmp_path / "own"))
    with pytest.raises(FathomError, match=re.escape(str(file))):
        fathom.load(MODEL.name)
