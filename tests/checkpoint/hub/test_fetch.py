"""Fetching from the hub: what is needed, once, into huggingface_hub's own cache, which is looked into first."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fathom.checkpoint.gguf import GGUFFile
from fathom.checkpoint.hf import HFCheckpoint, save_hf
from fathom.checkpoint.hub import fetch_model
from fathom.errors import CheckpointError, ResourceError
from fathom.model import build
from tests.checkpoint.tiny_llama import SPEC
from tests.fuzz import gguf_files
from tests.hub_server import COMMIT, Hub, serving
from tests.recording_progress import RecordingProgress, Update


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    published = save_hf(tmp_path / "published", SPEC, build(SPEC, seed=1).state_dict(), max_shard_bytes=2000)
    files = {path.name: path.read_bytes() for path in published.iterdir()}
    files |= {
        "pytorch_model.bin": b"a pickle",
        "training_args.pt": b"a pickle",
        "modeling_tiny.py": b"code",
        "consolidated.safetensors": b"the same again",
        "original/model.safetensors": b"the same again",
        "README.md": b"prose",
        "chat_template.jinja": b"{{ messages }}",
        "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
        "trainer_state.json": b"{}",
        "onnx/model.onnx": b"another form",
        "tokenizer.json": b"{}",
    }
    with serving(files) as served:
        yield served


def test_weights_and_what_describes_them_are_fetched_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    progress = RecordingProgress()
    directory = fetch_model("owner/tiny", progress, cache_dir=tmp_path / "cache", endpoint=hub.url)
    wanted = {name for name in hub.files if name.startswith(("model-", "model."))} | {
        "config.json",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "tokenizer.json",
    }
    there = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert there == set(hub.sent) == wanted
    assert len(hub.sent) == len(wanted)
    source = HFCheckpoint.open(directory)
    expected = build(SPEC, seed=1).state_dict()
    assert source.spec == SPEC
    assert all(torch.equal(tensor, expected[name]) for name, tensor in source.stream())
    total = sum(len(hub.files[name]) for name in wanted)
    assert progress.updates[-1] == Update(total, total, "bytes", "download")
    done = [update.done for update in progress.updates]
    assert done == sorted(done)


def test_what_was_fetched_is_opened_again_without_a_request(hub: Hub, tmp_path: Path) -> None:
    directory = fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url)
    hub.asked.clear()
    for name in ("owner/tiny", "owner/tiny@main", f"owner/tiny@{COMMIT}", "https://huggingface.co/owner/tiny/"):
        assert fetch_model(name, cache_dir=tmp_path / "cache", endpoint=hub.url) == directory
    assert hub.asked == []


def test_what_is_missing_of_a_snapshot_is_fetched_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    directory = fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url)
    shard = sorted(directory.glob("model-*"))[0]
    for gone in (shard.name, "tokenizer.json"):
        (directory / gone).resolve().unlink()
        (directory / gone).unlink()
        hub.sent.clear()
        assert fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url) == directory
        assert hub.sent == [gone]


def test_a_snapshot_of_an_older_library_without_a_listing_is_used(hub: Hub, tmp_path: Path) -> None:
    directory = fetch_model("owner/tiny", cache_dir=tmp_path / "first", endpoint=hub.url)
    shutil.copytree(tmp_path / "first", tmp_path / "cache", symlinks=True)
    shutil.rmtree(tmp_path / "cache" / "models--owner--tiny" / "trees", ignore_errors=True)
    hub.asked.clear()
    found = fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url)
    assert found.name == directory.name
    assert hub.asked == []
    (found / "tokenizer.json").unlink()  # transformers fetches a model without its tokenizer
    assert fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url) == found
    assert set(hub.sent) >= {"tokenizer.json"}
    assert (found / "tokenizer.json").is_file()


def test_a_snapshot_without_a_vocabulary_serves_while_the_hub_is_down(hub: Hub, tmp_path: Path) -> None:
    directory = fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url)
    (directory / "tokenizer.json").unlink()
    hub.refusal = (503, "")
    assert fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url) == directory
    shutil.rmtree(directory)
    with pytest.raises(CheckpointError, match="the hub cannot be reached"):
        fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url)


def test_what_an_earlier_fathom_cached_is_found(hub: Hub, tmp_path: Path) -> None:
    directory = fetch_model("owner/tiny", cache_dir=tmp_path / "former", endpoint=hub.url)
    hub.asked.clear()
    caches = {"cache_dir": tmp_path / "cache", "former_caches": [tmp_path / "none", tmp_path / "former"]}
    assert fetch_model("owner/tiny", endpoint=hub.url, **caches) == directory  # type: ignore[arg-type]
    assert hub.asked == []


def test_a_whole_file_is_fetched_without_the_shards_beside_it(hub: Hub, tmp_path: Path) -> None:
    whole = save_hf(tmp_path / "whole", SPEC, build(SPEC, seed=2).state_dict())
    hub.files["model.safetensors"] = (whole / "model.safetensors").read_bytes()
    directory = fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url)
    assert not [name for name in hub.sent if name.startswith("model-")]
    expected = build(SPEC, seed=2).state_dict()["norm.weight"]
    assert torch.equal(dict(HFCheckpoint.open(directory).stream())["norm.weight"], expected)


@pytest.fixture
def quantised(hub: Hub, tmp_path: Path) -> Hub:
    """Return the hub with GGUF models only: two whole, one in parts in a folder, one of a type that is not read."""
    whole = gguf_files.write_model(tmp_path / "whole.gguf")
    (tmp_path / "parts").mkdir()
    parts = gguf_files.split(whole, tmp_path / "parts", 8)
    hub.files = {
        "config.json": hub.files["config.json"],
        "README.md": b"prose",
        "tiny-Q8_0.gguf": whole.read_bytes(),
        "tiny-Q4_0.gguf": whole.read_bytes() + bytes(32),
        "tiny-IQ2_XXS.gguf": b"x",
        "mmproj-tiny-F16.gguf": b"x",
    }
    hub.files |= {f"BF16/{part.name.replace('tiny', 'tiny-BF16')}": part.read_bytes() for part in parts}
    return hub


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (":Q8_0", ["tiny-Q8_0.gguf"]),
        (":q4_0", ["tiny-Q4_0.gguf"]),
        ("/tiny-Q8_0.gguf", ["tiny-Q8_0.gguf"]),
        ("@main:tiny-Q8_0.gguf", ["tiny-Q8_0.gguf"]),
        (":BF16", [f"BF16/tiny-BF16-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]),
        ("/BF16/tiny-BF16-00002-of-00003.gguf", [f"BF16/tiny-BF16-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]),
    ],
)
def test_one_quantisation_of_a_repository_is_fetched_and_found_again(
    quantised: Hub, tmp_path: Path, choice: str, sent: list[str]
) -> None:
    file = fetch_model(f"owner/tiny{choice}", cache_dir=tmp_path / "cache", endpoint=quantised.url)
    assert sorted(quantised.sent) == sent
    assert GGUFFile.open(file).spec.vocab_size == gguf_files.VOCAB
    quantised.asked.clear()
    assert fetch_model(f"owner/tiny{choice}", cache_dir=tmp_path / "cache", endpoint=quantised.url) == file
    assert quantised.asked == []


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        (
            "",
            "publishes 4 GGUF models; choose one of owner/tiny:BF16, owner/tiny:IQ2_XXS, owner/tiny:Q4_0, ",
        ),
        (":Q6_K", "owner/tiny: has no Q6_K; choose one of owner/tiny:BF16"),
        ("/other.gguf", "owner/tiny: has no other.gguf; choose one of owner/tiny:BF16"),
        (
            ":IQ2_XXS",
            "IQ2_XXS is no type that Fathom reads; choose one of owner/tiny:BF16, owner/tiny:Q4_0, owner/tiny:Q8_0$",
        ),
    ],
)
def test_a_quantisation_that_is_not_clear_is_refused_with_the_choices(
    quantised: Hub, tmp_path: Path, choice: str, line: str
) -> None:
    with pytest.raises(CheckpointError, match=line):
        fetch_model(f"owner/tiny{choice}", cache_dir=tmp_path / "cache", endpoint=quantised.url)
    assert quantised.sent == []


def test_the_only_gguf_model_needs_no_choice(quantised: Hub, tmp_path: Path) -> None:
    quantised.files = {name: content for name, content in quantised.files.items() if "Q8_0" in name or "mm" in name}
    file = fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=quantised.url)
    assert file.name == "tiny-Q8_0.gguf"


def test_parts_that_are_not_published_are_noticed_before_any_is_fetched(quantised: Hub, tmp_path: Path) -> None:
    del quantised.files["BF16/tiny-BF16-00002-of-00003.gguf"]
    with pytest.raises(CheckpointError, match="2 of 3 parts of BF16/tiny-BF16 are published"):
        fetch_model("owner/tiny:BF16", cache_dir=tmp_path / "cache", endpoint=quantised.url)
    assert quantised.sent == []


def test_shards_that_are_not_published_are_noticed(hub: Hub, tmp_path: Path) -> None:
    gone = next(name for name in hub.files if name.startswith("model-"))
    del hub.files[gone]
    with pytest.raises(
        CheckpointError, match=f"files of model.safetensors.index.json are not published .{gone}.; choose"
    ):
        fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url)
    assert not [name for name in hub.sent if name.startswith("model-")]


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (
            {"adapter_config.json": b'{"base_model_name_or_path": "owner/base"}', "adapter_model.safetensors": b"x"},
            "owner/tiny: is an adapter of owner/base",
        ),
        ({"params.json": b"{}", "consolidated.safetensors": b"x"}, "owner/tiny: holds a model in its publisher's own"),
        ({"README.md": b"x"}, "owner/tiny: publishes neither safetensors nor .gguf files; choose another"),
        ({"config.json": b"{}", "weights.safetensors": b"x"}, "owner/tiny: holds weights.safetensors, but no model.s"),
    ],
)
def test_repositories_of_other_forms_say_what_they_are(
    hub: Hub, tmp_path: Path, files: dict[str, bytes], line: str
) -> None:
    hub.files = files
    with pytest.raises(CheckpointError, match=line):
        fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url)
    assert not [name for name in hub.sent if name.endswith(".safetensors")]


def fathom(hub: Hub, home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with the hub's variables, in a home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_", "FATHOM_"))}
    variables = {"HOME": str(home), "HF_ENDPOINT": hub.url, "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [sys.executable, "-m", "fathom", *arguments], env=kept | variables, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_hubs_own_variables_are_respected(quantised: Hub, tmp_path: Path) -> None:
    """HF_HUB_CACHE, HF_HOME and XDG_CACHE_HOME say where, HF_TOKEN who, and HF_HUB_OFFLINE whether at all."""
    home = tmp_path / "home"
    home.mkdir()
    first = fathom(quantised, home, "inspect", "owner/tiny:Q8_0", HF_HOME=str(tmp_path / "hf"), HF_TOKEN="hf_secret")
    assert first.returncode == 0, first.stderr
    assert "fetching owner/tiny:Q8_0" in first.stderr
    assert (tmp_path / "hf" / "hub" / "models--owner--tiny" / "snapshots" / COMMIT / "tiny-Q8_0.gguf").is_file()
    assert quantised.tokens == {"Bearer hf_secret"}
    assert not (home / ".cache" / "fathom" / "hub").exists()
    quantised.asked.clear()
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hf" / "hub")}
    again = fathom(quantised, home, "inspect", "owner/tiny:Q8_0", **offline)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    absent = fathom(
        quantised, home, "inspect", "owner/tiny:Q4_0", XDG_CACHE_HOME=str(tmp_path / "xdg"), HF_HUB_OFFLINE="1"
    )
    assert absent.returncode == 2
    assert absent.stderr == (
        f"error: owner/tiny:Q4_0: is not whole in the cache ({tmp_path / 'xdg' / 'huggingface' / 'hub'}), and "
        "HF_HUB_OFFLINE forbids to fetch it; unset it, or download it by other means and give its directory\n"
    )
    assert quantised.asked == []


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (
            (404, "RepoNotFound"),
            "is no file or directory here, and is not on the hub, or is private; check the name or log in",
        ),
        ((401, ""), "is no file or directory here, and is not on the hub, or is private"),
        ((403, "GatedRepo"), "is gated; accept its terms on the hub and log in"),
        (
            (500, ""),
            r"is no file .* the hub cannot be reached \(.*500 Internal Server Error.*\); check the path or the network",
        ),
    ],
)
def test_a_refusal_is_one_line_that_says_how_to_go_on(
    refusal: tuple[int, str], message: str, hub: Hub, tmp_path: Path
) -> None:
    hub.refusal = refusal
    with pytest.raises(CheckpointError, match=f"^owner/tiny: {message}") as caught:
        fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url)
    assert str(caught.value).endswith("or download it by other means and give its directory")
    assert "\n" not in str(caught.value)


def test_a_missing_revision_is_named(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no revision 'v9'; name a branch"):
        fetch_model("owner/tiny@v9", cache_dir=tmp_path / "cache", endpoint=hub.url)


def test_no_network_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(
        CheckpointError, match=r"owner/tiny: .* and the hub cannot be reached \(.*\); check .* directory$"
    ):
        fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint="http://127.0.0.1:9")


def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a/b/c: is no name of the hub; write it as owner/name"):
        fetch_model("a/b/c", cache_dir=tmp_path)


def test_pickles_alone_are_no_model(hub: Hub, tmp_path: Path) -> None:
    hub.files = {name: content for name, content in hub.files.items() if ".safetensors" not in name}
    line = r"owner/tiny: publishes no safetensors, and pickled weights \(pytorch_model.bin\) are never read; choose"
    with pytest.raises(CheckpointError, match=line):
        fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url)
    assert hub.sent == []


@pytest.mark.slow
def test_the_remedy_for_pickles_leads_to_the_command_that_converts(hub: Hub, tmp_path: Path) -> None:
    hub.files = {name: content for name, content in hub.files.items() if ".safetensors" not in name}
    with pytest.raises(CheckpointError) as caught:
        fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url)
    command = str(caught.value).partition("run '")[2].partition("'")[0]
    assert command == "hf download owner/tiny --local-dir tiny"
    scripts = str(Path(sys.executable).parent)
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "PATH": f"{scripts}:{os.environ['PATH']}"}
    subprocess.run(command, shell=True, cwd=tmp_path, env=os.environ | variables, check=True, capture_output=True)
    with pytest.raises(CheckpointError, match="write safetensors beside them, if you trust them: python -c"):
        HFCheckpoint.open(tmp_path / "tiny")


def test_files_that_are_gated_say_so(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True
    with pytest.raises(CheckpointError, match="owner/tiny: is gated; accept its terms on the hub and log in with 'hf"):
        fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url)


def test_a_full_disk_is_a_matter_of_resources(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(ResourceError, match="not fetched, the disk is full; free disk space"):
        fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"needs huggingface_hub; .*pip install .*\[hub\].*, or download"):
        fetch_model("owner/tiny")
