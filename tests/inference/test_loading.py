"""What a user may name, and what is said when it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from fathom.checkpoint.fathom_checkpoint import write_fathom
from fathom.checkpoint.hf import save_hf
from fathom.checkpoint.weights import StateWeights
from fathom.errors import CheckpointError
from fathom.inference import loading as opening
from fathom.inference.catalog import catalog
from fathom.inference.loading import open_source
from fathom.model.build import build
from fathom.spec import GroupedQueryAttention, ModelSpec

SPEC = ModelSpec(
    name="tiny",
    family="llama",
    vocab_size=30,
    hidden_size=16,
    num_hidden_layers=1,
    attention=GroupedQueryAttention(num_heads=2, num_kv_heads=2, head_dim=8),
    max_position_embeddings=24,
    intermediate_size=24,
)


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Return a folder with one model in every form."""
    from fathom.checkpoint.gguf import write_gguf

    weights = StateWeights(SPEC, build(SPEC, seed=0).state_dict())
    save_hf(tmp_path / "hf", SPEC, weights.state)
    write_fathom(tmp_path / "fathom", weights)
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "tiny.gguf", weights, kind="F32")
    return tmp_path


@pytest.mark.parametrize(
    ("place", "form"), [("hf", "hf"), ("fathom", "fathom"), ("gguf", "gguf"), ("gguf/tiny.gguf", "gguf")]
)
def test_every_form_opens_by_its_path(places: Path, place: str, form: str) -> None:
    for name in (places / place, str(places / place)):
        source = open_source(name)
        assert source.form == form
        assert (source.spec.vocab_size, source.spec.hidden_size) == (30, 16)


def test_a_directory_with_several_gguf_files_asks_which(places: Path) -> None:
    (places / "gguf" / "other.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"holds 2 \.gguf models \(other\.gguf, tiny\.gguf\); give one of them"):
        open_source(places / "gguf")


def test_a_name_of_the_catalog_is_fetched_unless_a_path_has_that_name(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch_named(model, cache_dir, progress):
        asked.append((model.name, cache_dir))
        return places / "gguf" / "tiny.gguf"

    monkeypatch.setattr("fathom.inference.catalog.fetch_named", fetch_named)
    monkeypatch.chdir(places)
    assert open_source("smollm2-135m", cache_dir=places / "cache").form == "gguf"
    assert asked == [("smollm2-135m", places / "cache")]
    (places / "hf").rename(places / "smollm2-135m")
    assert open_source("smollm2-135m").form == "hf"
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["smolm2-135m", "SmolLM2", "SMOLLM2-135M"])
def test_a_near_miss_is_told_with_the_name_that_was_meant(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"did you mean smollm2-135m\?") as caught:
        open_source(name)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_all_that_may_be_given(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_source("zzz")
    for word in ("a run", "checkpoint", "config.json", ".gguf", "owner/name", *catalog()):
        assert word in str(caught.value)
    assert "did you mean" not in str(caught.value)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"notes\.txt: is not a model; give a \.gguf file"):
        open_source(tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match="holds no run, checkpoint"):
        open_source(tmp_path)


def test_a_mistyped_path_below_a_real_directory_is_no_name_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening, "_fetch_from_hub", lambda *arguments: pytest.fail("asked the hub"))
    for name in ("runs/quickstart", "runs/a.gguf", "../x/y", "/a/b", "./a/b"):
        with pytest.raises(CheckpointError, match="no such file, directory or model"):
            open_source(name)


def test_owner_and_name_are_fetched_from_the_hub(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_fetch_from_hub", lambda name, cache_dir, progress: places / "hf")
    assert open_source("owner/some-model.v1") == open_source(places / "hf")
