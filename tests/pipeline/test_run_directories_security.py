"""Run directories of somebody else, and recipes of strangers: nothing is read or written outside by what they name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fathom.data.corpus import CorpusSummary, read_documents
from fathom.data.shards import TokenShards, write_shards
from fathom.errors import CheckpointError, DataError, FathomError, ShardError, SpecError
from fathom.inference.loading import find_checkpoint
from fathom.inference.run_record import read_recipe, read_state
from fathom.pipeline.recipe import load_run_plan
from fathom.pipeline.run import run
from fathom.tokenizer import Tokenizer, train_bpe

RECIPE = """
name = {name}

[[steps]]
kind = "corpus"
name = {step}
manifest = "sources.toml"
min_chars = 3
"""
SOURCES = """
[[sources]]
kind = "folder"
name = {source}
path = "texts"
"""
HOSTILE = (
    "../../outside",
    "/tmp/outside",
    "..",
    ".",
    "a/../../b",
    "con",
    "state.json",
    "a\0b",
    "\x1b]0;x\x07",
    "\ud800",
)
Change = Callable[[Any], None]


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    folder = tmp_path / "stranger"
    (folder / "texts").mkdir(parents=True)
    for index in range(8):
        (folder / "texts" / f"{index}.txt").write_text(f"the {index} rivers and {index * index} towers of {index}")
    (folder / "sources.toml").write_text(SOURCES.format(source='"mine"'))
    (folder / "recipe.toml").write_text(RECIPE.format(name='"x"', step='"corpus"'))
    return folder


@pytest.fixture
def handed_over(stranger: Path, tmp_path: Path) -> Path:
    """A run directory whose corpus step is done."""
    out = tmp_path / "handed-over"
    run(load_run_plan(stranger / "recipe.toml"), out, cache_dir=tmp_path / "cache")
    return out


def change(path: Path, act: Change) -> None:
    document = json.loads(path.read_text())
    act(document)
    path.write_text(json.dumps(document))


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("name", HOSTILE)
def test_names_in_the_records_are_refused(name: str, handed_over: Path) -> None:
    change(handed_over / "recipe.json", lambda document: document["recipe"]["steps"][0].update(name=name))
    for read in (read_recipe, find_checkpoint):
        with pytest.raises(
            CheckpointError, match=r"recipe\.json: cannot be used .*(not a plain name|zero byte)"
        ) as caught:
            read(handed_over)
        assert str(caught.value).isprintable()
    change(handed_over / "state.json", lambda document: document["steps"].update({name: document["steps"]["corpus"]}))
    with pytest.raises(CheckpointError, match=r"state\.json: is not the state .*not a plain name"):
        read_state(handed_over)


@pytest.mark.parametrize(
    "act",
    [
        lambda steps: steps["corpus"].update(status="fine"),
        lambda steps: steps["corpus"].update(seconds=float("nan")),
        lambda steps: steps["corpus"].update(inputs=["x"]),
        lambda steps: steps["corpus"].update(other=1),
        lambda steps: steps["corpus"].clear(),
    ],
)
def test_states_of_another_shape_are_refused(act: Change, handed_over: Path) -> None:
    change(handed_over / "state.json", lambda document: act(document["steps"]))
    with pytest.raises(CheckpointError, match=r"state\.json: is not the state of a Fathom run"):
        read_state(handed_over)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{}", "[]", "null", '{"steps": []}', '{"steps": {"a": 1}}', "9" * 5000]
)
def test_records_that_are_none_end_in_one_line(text: str, handed_over: Path) -> None:
    for name in ("state.json", "recipe.json"):
        (handed_over / name).write_text(text)
    for read in (read_state, read_recipe):
        with pytest.raises(CheckpointError) as caught:
            read(handed_over)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("manifests", [None, [], {}, {"corpus": 3}, {"corpus": {"sources": []}}, {"x": {}}])
def test_a_record_without_its_manifests_is_refused(manifests: Any, handed_over: Path, stranger: Path) -> None:
    change(handed_over / "recipe.json", lambda document: document.update(manifests=manifests))
    plan = load_run_plan(stranger / "recipe.toml", overrides=["corpus.min_chars=4"])
    with pytest.raises(CheckpointError, match=r"recipe\.json: cannot be used"):
        run(plan, handed_over, cache_dir=handed_over / "cache", resume=True)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_corpus_names_no_file_outside(name: str, handed_over: Path, tmp_path: Path) -> None:
    corpus = handed_over / "corpus"
    change(corpus / "summary.json", lambda document: document["sources"].update({name: document["sources"]["mine"]}))
    learned = tokenizer(tmp_path / "tokenizer")
    before = tree(tmp_path)
    with pytest.raises(DataError, match=r"summary\.json: no usable summary .*not a plain name"):
        CorpusSummary.load(corpus)
    with pytest.raises(DataError):
        write_shards(corpus, learned, tmp_path / "shards")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["../../secret.bin", "/etc/passwd", "00000.bin/../../x", "index.json", "", 7, None])
def test_shards_are_files_beside_their_index(name: Any, handed_over: Path, tmp_path: Path) -> None:
    write_shards(handed_over / "corpus", tokenizer(tmp_path / "tokenizer"), tmp_path / "shards")
    folder = tmp_path / "shards" / "train" / "mine"
    tokens = len(TokenShards.open(folder))
    (tmp_path / "shards" / "secret.bin").write_bytes(bytes(2 * tokens))
    change(folder / "index.json", lambda document: document["shards"][0].update(file=name))
    with pytest.raises(ShardError, match=r"no usable index \(shards\[0\]\.file: "):
        TokenShards.open(folder)


@pytest.mark.parametrize("tokens", [-1, 1.5, 2**70, True, "2", None])
def test_shards_have_counts(tokens: Any, handed_over: Path, tmp_path: Path) -> None:
    write_shards(handed_over / "corpus", tokenizer(tmp_path / "tokenizer"), tmp_path / "shards")
    folder = tmp_path / "shards" / "train" / "mine"
    change(folder / "index.json", lambda document: document["shards"][0].update(tokens=tokens))
    with pytest.raises(ShardError, match="no usable index"):
        TokenShards.open(folder)


@pytest.mark.parametrize("place", ["corpus/train/mine.jsonl", ".lock", "pretrain", "corpus/elsewhere"])
@pytest.mark.parametrize("way", ["resume", "restart"])
def test_links_out_of_a_run_are_not_followed(place: str, way: str, handed_over: Path, stranger: Path) -> None:
    precious = stranger / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    link = handed_over / place
    link.unlink(missing_ok=True)
    link.symlink_to(precious if place == "pretrain" else precious / "file")
    plan = load_run_plan(stranger / "recipe.toml")
    before = tree(handed_over)
    with pytest.raises(SpecError, match=r"--out: .* is a link to .*precious.*, outside the run; put what it leads to"):
        run(plan, handed_over, cache_dir=handed_over / "cache", **{way: True})
    assert (precious / "file").read_text() == "kept"
    assert tree(handed_over) == before
    link.unlink()
    moved = handed_over.rename(handed_over.with_name("moved"))
    handed_over.symlink_to(moved)  # the remedy: the run itself may be a link
    (moved / "inside").symlink_to("corpus")
    run(plan, handed_over, cache_dir=stranger / "cache", restart=True)
    assert list(read_documents(moved / "corpus", "mine", "train"))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.fixed_dictionaries(
        {
            place: st.sampled_from((*HOSTILE, "x", "天", "ordner", "Recipe", "report"))
            | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
            for place in ("name", "step", "source")
        }
    )
)
def test_whatever_a_recipe_is_called_it_writes_into_its_run(stranger: Path, names: dict[str, str]) -> None:
    (stranger / "sources.toml").write_text(SOURCES.format(source=quoted(names["source"])), "utf-8", "surrogatepass")
    recipe = RECIPE.format(name=quoted(names["name"]), step=quoted(names["step"]))
    (stranger / "recipe.toml").write_text(recipe, "utf-8", "surrogatepass")
    runs = stranger.parent / "runs"
    before = tree(stranger.parent)
    refusal = ""
    try:
        plan = load_run_plan(stranger / "recipe.toml")
    except FathomError as error:
        refusal = str(error)
    if refusal:
        assert all(line.isprintable() for line in refusal.split("\n"))
        assert len(refusal.split("\n")) <= 7  # a heading, and two lines for each of the three names
        assert tree(stranger.parent) == before
        return
    out = runs / plan.recipe.name
    assert out.parent == runs
    run(plan, out, cache_dir=stranger.parent / "cache", restart=out.exists())
    changed = {path for path, at in tree(stranger.parent).items() if before.get(path) != at}
    assert {Path(path) for path in changed if not Path(path).is_relative_to(out)} <= {runs, stranger.parent}
    assert sorted(os.listdir(out)) == sorted((names["step"], "recipe.json", "state.json", ".lock"))
    assert (out / names["step"] / "train" / f"{names['source']}.jsonl").is_file()


def quoted(text: str) -> str:
    return json.dumps(text).replace("\x7f", "\\u007f")


def tokenizer(folder: Path) -> Tokenizer:
    train_bpe(["the rivers and towers of "], vocab_size=320).save(folder)
    return Tokenizer.load(folder)
