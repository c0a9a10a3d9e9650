"""Which weights of a directory are read, by transformers' choice, and what is said of those that are not."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from fathom.checkpoint.hf import HFCheckpoint, load_hf, save_hf
from fathom.errors import CheckpointError
from fathom.inference.loading import open_source
from fathom.model import build
from tests.checkpoint.tiny_llama import SPEC

INDEX = "model.safetensors.index.json"


def state(seed: int) -> dict[str, Tensor]:
    return build(SPEC, seed=seed).state_dict()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory whose weights are one file."""
    return save_hf(tmp_path_factory.mktemp("whole") / "model", SPEC, state(1))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of other weights in shards."""
    return save_hf(tmp_path_factory.mktemp("sharded") / "model", SPEC, state(2), max_shard_bytes=1000)


CHOICES = [
    (has_whole, index, named)
    for has_whole, index, named in itertools.product([True, False], ["none", "whole", "stale"], [None, "named"])
    if has_whole or index == "whole" or named is not None
]


@pytest.mark.parametrize(("has_whole", "index", "named"), CHOICES)
def test_the_weights_are_those_that_transformers_takes(
    whole: Path, sharded: Path, tmp_path: Path, has_whole: bool, index: str, named: str | None
) -> None:
    shutil.copy(whole / "config.json", tmp_path)
    if has_whole:
        shutil.copy(whole / "model.safetensors", tmp_path)
    for file in sharded.glob("model-*.safetensors") if index == "whole" else ():
        shutil.copy(file, tmp_path)
    if index != "none":
        shutil.copy(sharded / INDEX, tmp_path)
    if named is not None:
        save_hf(tmp_path / "third", SPEC, state(3))
        (tmp_path / "third" / "model.safetensors").rename(tmp_path / f"{named}.safetensors")
        shutil.rmtree(tmp_path / "third")
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"transformers_weights": f"{named}.safetensors"}))
    (tmp_path / "consolidated.safetensors").write_bytes(b"another form")
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    transformers.logging.disable_progress_bar()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    _, ours = load_hf(tmp_path)
    assert torch.equal(ours["embed_tokens.weight"], theirs["model.embed_tokens.weight"])


def test_names_in_another_case_are_found(whole: Path, sharded: Path, tmp_path: Path) -> None:
    one, many = shutil.copytree(whole, tmp_path / "one"), shutil.copytree(sharded, tmp_path / "many")
    (one / "model.safetensors").rename(one / "Model.SafeTensors")
    for file in list(many.glob("*.safetensors")):
        file.rename(file.with_suffix(".SAFETENSORS"))
    assert torch.equal(load_hf(one)[1]["embed_tokens.weight"], state(1)["embed_tokens.weight"])
    assert torch.equal(load_hf(many)[1]["embed_tokens.weight"], state(2)["embed_tokens.weight"])


def test_a_snapshot_of_links_to_blobs_reads(sharded: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots" / "main").mkdir(parents=True)
    for number, file in enumerate(sharded.iterdir()):
        shutil.copy(file, tmp_path / "blobs" / f"{number}")
        (tmp_path / "snapshots" / "main" / file.name).symlink_to(f"../../blobs/{number}")
    source = open_source(tmp_path / "snapshots" / "main")
    assert dict(source.stream()).keys() == state(2).keys()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("target", ["nowhere", None])
def test_a_link_that_leads_nowhere_or_in_a_circle_is_named(
    whole: Path, tmp_path: Path, name: str, target: str | None
) -> None:
    directory = shutil.copytree(whole, tmp_path / "model")
    (directory / name).unlink()
    (directory / name).symlink_to(target or name)
    line = rf"{name}: is a link to {target or name}, which leads to no file; download the file again$"
    for opened in (HFCheckpoint.open, open_source):
        with pytest.raises(CheckpointError, match=line):
            opened(directory)


def test_a_directory_that_links_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match="loop: is a link to loop, which leads to no file"):
        open_source(tmp_path / "loop")


def test_a_directory_with_a_circle_inside_opens(whole: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(whole, tmp_path / "model")
    (directory / "again").symlink_to(directory)
    (directory / "loop.safetensors").symlink_to("loop.safetensors")
    (directory / "loop.gguf").symlink_to("loop.gguf")
    assert open_source(directory).form == "hf"


def test_missing_shards_are_named_with_what_to_do(sharded: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(sharded, tmp_path / "model")
    shards = sorted(directory.glob("model-*"))
    shards[1].unlink()
    line = rf"1 of {len(shards)} files of {INDEX} are missing \({shards[1].name}\); download them into the directory"
    with pytest.raises(CheckpointError, match=line):
        open_source(directory)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "weights.bin", "a\\b", 5])
def test_an_index_that_names_anything_but_its_own_files_is_refused(sharded: Path, tmp_path: Path, name: object) -> None:
    directory = shutil.copytree(sharded, tmp_path / "model")
    content = json.loads((directory / INDEX).read_text())
    content["weight_map"]["model.norm.weight"] = name
    (directory / INDEX).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"which is no .safetensors file of its directory; download the index"):
        open_source(directory)


@pytest.mark.parametrize("named", ["../x.safetensors", "weights.bin", 3, "x.safetensors"])
def test_a_file_that_the_config_names_must_be_one_of_the_directory(whole: Path, tmp_path: Path, named: object) -> None:
    directory = shutil.copytree(whole, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"transformers_weights": named}))
    with pytest.raises(CheckpointError, match=r"transformers_weights is|is missing, and config.json names it"):
        open_source(directory)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pointer_of_git_lfs_is_called_so(whole: Path, tmp_path: Path, name: str) -> None:
    directory = shutil.copytree(whole, tmp_path / "model")
    (directory / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4870\n")
    with pytest.raises(CheckpointError, match=f"{name}: is a pointer of Git LFS and not the file itself; run 'git lfs"):
        open_source(directory)
    (tmp_path / "m.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4870\n")
    with pytest.raises(CheckpointError, match=r"m.gguf: is a pointer of Git LFS"):
        open_source(tmp_path / "m.gguf")


OTHER_FORMS = {
    "Mistral's own": (
        {"params.json": "{}", "consolidated.safetensors": "x", "tekken.json": "{}"},
        r"in its publisher's own form \(params.json, consolidated.safetensors\), which is not read; get its Hugging",
    ),
    "Mistral's own beside a config": ({"config.json": "", "consolidated.safetensors": "x"}, "publisher's own form"),
    "Meta's own": ({"params.json": "{}", "consolidated.00.pth": "x"}, r"\(params.json, consolidated.00.pth\)"),
    "an adapter": (
        {"adapter_config.json": '{"base_model_name_or_path": "owner/base"}', "adapter_model.safetensors": "x"},
        r"is an adapter of owner/base \(adapter_config.json\), no whole model; open owner/base and give the adapter",
    ),
    "an adapter of nothing": (
        {"adapter_config.json": "["},
        r"is an adapter \(adapter_config.json\), .* its base model",
    ),
    "sentence-transformers": (
        {"modules.json": "[]", "0_Transformer/config.json": "{}"},
        r"is a model of sentence-transformers .*; give \S+/0_Transformer$",
    ),
    "diffusers": ({"model_index.json": "{}"}, "is a pipeline of diffusers"),
    "other pickles": ({"model.ckpt": "x"}, r"holds pickled weights \(model.ckpt\), which are never read; get config"),
    "TensorFlow": ({"tf_model.h5": "x", "config.json": ""}, r"holds weights of TensorFlow \(tf_model.h5\)"),
    "ONNX": ({"model.onnx": "x"}, r"holds weights of ONNX \(model.onnx\)"),
    "quantisations in directories": (
        {"Q8_0/a-Q8_0.gguf": "x", "F16/a-F16.gguf": "x", "README.md": "x"},
        r"holds no model itself, but there is one in F16, Q8_0; give \S+/F16$",
    ),
    "a repository in the hub's cache": (
        {"snapshots/0123/config.json": "{}", "snapshots/0123/model.safetensors": "x"},
        r"there is one in snapshots/0123; give \S+/snapshots/0123$",
    ),
    "a trainer's checkpoints": (
        {"checkpoint-500/config.json": "{}", "checkpoint-500/model.safetensors": "x"},
        r"there is one in checkpoint-500; give \S+/checkpoint-500$",
    ),
    "no config": ({"model.safetensors": "x"}, "holds model.safetensors without config.json; download config.json"),
    "no index": ({"config.json": "", "model-00001-of-00002.safetensors": "x"}, "no model.safetensors.index.json; down"),
    "another name": ({"config.json": "", "weights.safetensors": "x"}, "holds weights.safetensors, but no model.safet"),
}


@pytest.mark.parametrize("what", OTHER_FORMS)
def test_other_forms_are_refused_with_what_to_get_instead(whole: Path, tmp_path: Path, what: str) -> None:
    contents, line = OTHER_FORMS[what]
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    if contents.get("config.json") == "":
        shutil.copy(whole / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=line) as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)


def test_an_adapter_beside_whole_weights_is_no_obstacle(whole: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(whole, tmp_path / "model")
    for name in ("adapter_config.json", "params.json", "consolidated.safetensors", "modules.json"):
        (directory / name).write_text("{}")
    assert open_source(directory).form == "hf"


@pytest.mark.slow
def test_the_command_for_pickled_weights_works(whole: Path, tmp_path: Path) -> None:
    directory = tmp_path / "it's a model"
    model = transformers.AutoModelForCausalLM.from_pretrained(whole)
    model.config.save_pretrained(directory)
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="write safetensors beside them, if you trust them: python -c") as caught:
        open_source(directory)
    command = str(caught.value).partition("trust them: ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert torch.equal(load_hf(directory)[1]["embed_tokens.weight"], state(1)["embed_tokens.weight"])
