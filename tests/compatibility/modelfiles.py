"""Files and directories of models as others publish, download and leave them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fathom.checkpoint.gguf import write_gguf
from fathom.checkpoint.hf import save_hf
from fathom.checkpoint.hub import fetch_model
from fathom.checkpoint.weights import StateWeights
from fathom.errors import FathomError
from fathom.inference.inspection import list_files
from fathom.inference.loading import open_source
from fathom.model.build import build
from fathom.spec import GroupedQueryAttention, ModelSpec
from tests.compatibility.case import Case, Outcome, Status
from tests.hub_server import serving

SPEC = ModelSpec(
    name="tiny",
    family="llama",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    attention=GroupedQueryAttention(num_heads=2, num_kv_heads=1, head_dim=16),
    max_position_embeddings=64,
)
INDEX = "model.safetensors.index.json"
Prepare = Callable[[Path], Path]


@dataclass(frozen=True, slots=True)
class Opened:
    """Makes something in a folder and opens it."""

    prepare: Prepare

    def __call__(self, folder: Path) -> Outcome:
        path = self.prepare(folder)
        try:
            source = open_source(path)
            tensors = sum(1 for _ in source.stream())
        except FathomError as error:
            return Outcome("refused", _line(error, folder))
        files = len(list_files(source.path))
        return Outcome("works", f"{tensors} tensors, {files} file{'s' if files > 1 else ''}")


def _line(error: FathomError, folder: Path) -> str:
    """Return an error's problem without paths, which differ by machine."""
    return str(error).partition(";")[0].replace(f"{folder}/", "").replace(f"{folder}: ", "")


def _weights(seed: int = 1) -> StateWeights:
    return StateWeights(SPEC, build(SPEC, seed=seed).state_dict())


def _whole(folder: Path) -> Path:
    return save_hf(folder / "model", SPEC, _weights().state)


def _sharded(folder: Path) -> Path:
    return save_hf(folder / "model", SPEC, _weights().state, max_shard_bytes=20_000)


def _split(folder: Path) -> list[Path]:
    first = write_gguf(folder / "tiny.gguf", _weights(), kind="F16", max_part_bytes=12_000)
    return sorted(first.parent.iterdir())


def _any_part(folder: Path) -> Path:
    return _split(folder)[-1]


def _directory_of_parts(folder: Path) -> Path:
    return _split(folder)[0].parent


def _part_missing(folder: Path) -> Path:
    first, second, *_ = _split(folder)
    second.unlink()
    return first


def _part_empty(folder: Path) -> Path:
    first, second, *_ = _split(folder)
    second.write_bytes(b"")
    return first


def _part_twice(folder: Path) -> Path:
    first, second, third, *_ = _split(folder)
    shutil.copy(second, third)
    return first


def _upper_case(folder: Path) -> Path:
    return write_gguf(folder / "TINY.GGUF", _weights(), kind="F16")


def _safetensors_in_another_case(folder: Path) -> Path:
    directory = _whole(folder)
    (directory / "model.safetensors").rename(directory / "model.SafeTensors")
    return directory


def _stale_index(folder: Path) -> Path:
    directory = _whole(folder)
    content = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (directory / INDEX).write_text(json.dumps(content))
    return directory


def _shards_missing(folder: Path) -> Path:
    directory = _sharded(folder)
    next(directory.glob("model-00002-*")).unlink()
    return directory


def _index_points_elsewhere(folder: Path) -> Path:
    directory = _sharded(folder)
    content = json.loads((directory / INDEX).read_text())
    content["weight_map"]["model.norm.weight"] = "../other.safetensors"
    (directory / INDEX).write_text(json.dumps(content))
    return directory


def _snapshot_of_links(folder: Path) -> Path:
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    _sharded(folder).rename(blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    return snapshot


def _link_in_a_circle(folder: Path) -> Path:
    directory = _whole(folder)
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").symlink_to("model.safetensors")
    return directory


def _gguf_beside_config(folder: Path) -> Path:
    directory = _whole(folder)
    (directory / "model.safetensors").unlink()
    write_gguf(directory / "tiny-Q8_0.gguf", _weights(), kind="Q8_0")
    return directory


def _several_gguf(folder: Path) -> Path:
    write_gguf(folder / "tiny-Q8_0.gguf", _weights(), kind="Q8_0")
    return write_gguf(folder / "tiny-F16.gguf", _weights(), kind="F16").parent


def _made_of(**contents: str) -> Prepare:
    """Return a maker of a directory of these files; double underscores are dots."""

    def prepare(folder: Path) -> Path:
        for name, content in contents.items():
            (folder / name.replace("__", ".")).write_text(content)
        return folder

    return prepare


def _pickled(folder: Path) -> Path:
    directory = _whole(folder)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    return directory


def _lfs_pointer(folder: Path) -> Path:
    directory = _whole(folder)
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    return directory


def _published(folder: Path) -> dict[str, bytes]:
    files = {file.name: file.read_bytes() for file in _sharded(folder / "published").iterdir()}
    return files | {"tokenizer.json": b"{}", "pytorch_model.bin": b"x", "README.md": b"x", "onnx/model.onnx": b"x"}


def _quantisations(folder: Path) -> dict[str, bytes]:
    names = ("Q8_0", "Q4_0", "F16")
    paths = [write_gguf(folder / f"tiny-{name}.gguf", _weights(), kind=name) for name in names]  # type: ignore[arg-type]
    return {path.name: path.read_bytes() for path in paths}


def _fetched_once(folder: Path) -> Outcome:
    with serving(_published(folder)) as hub:
        first = fetch_model("owner/tiny", cache_dir=folder / "hub", endpoint=hub.url)
        sent, before = len(hub.sent), len(hub.asked)
        again = fetch_model("owner/tiny", cache_dir=folder / "hub", endpoint=hub.url)
        asked = len(hub.asked) - before
    return Outcome(
        "works" if first == again else "refused", f"{sent} of {len(hub.files)} files sent, then {asked} requests"
    )


def _chosen(choice: str) -> Callable[[Path], Outcome]:
    def run(folder: Path) -> Outcome:
        with serving(_quantisations(folder)) as hub:
            try:
                file = fetch_model(f"owner/tiny{choice}", cache_dir=folder / "hub", endpoint=hub.url)
            except FathomError as error:
                return Outcome("refused", str(error))
        return Outcome("works", f"{len(hub.sent)} of {len(hub.files)} files sent: {file.name}")

    return run


def _case(what: str, zh: str, prepare: Prepare, expected: Status = "works", source: str = "") -> Case:
    return Case(what=what, zh=zh, expected=expected, run=Opened(prepare), source=source)


CASES = (
    _case(
        "any part of a split GGUF model (NAME-00001-of-00009.gguf)",
        "拆分的 GGUF 模型中的任意一个分片（NAME-00001-of-00009.gguf）",
        _any_part,
        source="sgl-project/sglang#28209",
    ),
    _case(
        "a directory that holds one split GGUF model",
        "只含一个拆分 GGUF 模型的目录",
        _directory_of_parts,
        source="huggingface/transformers#32266",
    ),
    _case("a split GGUF model with a part missing", "拆分的 GGUF 模型缺少一个分片", _part_missing, "refused"),
    _case("a split GGUF model with an empty part", "拆分的 GGUF 模型有一个空分片", _part_empty, "refused"),
    _case("one part twice, under another part's name", "同一分片以另一分片的名称出现两次", _part_twice, "refused"),
    _case("a file called X.GGUF", "名为 X.GGUF 的文件", _upper_case),
    _case("a file called model.SafeTensors", "名为 model.SafeTensors 的文件", _safetensors_in_another_case),
    _case(
        "a whole model.safetensors beside an index of absent shards",
        "完整的 model.safetensors 旁有索引，其分片不存在",
        _stale_index,
    ),
    _case("an index with a shard missing", "索引所列的一个分片缺失", _shards_missing, "refused"),
    _case("an index that names a file outside", "索引指向目录之外的文件", _index_points_elsewhere, "refused"),
    _case("a snapshot of the hub's cache: links to blobs", "Hub 缓存的快照：指向 blob 的符号链接", _snapshot_of_links),
    _case("a link that leads back to itself", "指向自身的符号链接", _link_in_a_circle, "refused"),
    _case("a .gguf file beside config.json", "config.json 旁的 .gguf 文件", _gguf_beside_config),
    _case("a directory with several GGUF models", "含多个 GGUF 模型的目录", _several_gguf, "refused"),
    _case("pytorch_model.bin alone", "只有 pytorch_model.bin", _pickled, "refused"),
    _case(
        "params.json and consolidated.safetensors, Mistral's own form",
        "params.json 和 consolidated.safetensors，即 Mistral 自有格式",
        _made_of(params__json="{}", consolidated__safetensors="x"),
        "refused",
    ),
    _case(
        "an adapter without its base model",
        "只有适配器，没有基座模型",
        _made_of(adapter_config__json='{"base_model_name_or_path": "owner/base"}', adapter_model__safetensors="x"),
        "refused",
    ),
    _case(
        "a directory of sentence-transformers",
        "sentence-transformers 的目录",
        _made_of(modules__json="[]"),
        "refused",
    ),
    _case("a clone without Git LFS's files", "未取回 Git LFS 文件的克隆", _lfs_pointer, "refused"),
    Case(
        what="owner/name on the hub, twice",
        zh="Hub 上的 owner/name，先后两次",
        expected="works",
        run=_fetched_once,
    ),
    Case(
        what="owner/name:Q8_0, one quantisation of a repository",
        zh="owner/name:Q8_0，即仓库中的一种量化",
        expected="works",
        run=_chosen(":Q8_0"),
    ),
    Case(
        what="owner/name/FILE.gguf, one file of a repository",
        zh="owner/name/FILE.gguf，即仓库中的一个文件",
        expected="works",
        run=_chosen("/tiny-F16.gguf"),
    ),
    Case(
        what="owner/name of a repository with several GGUF models",
        zh="owner/name，仓库中有多个 GGUF 模型",
        expected="refused",
        run=_chosen(""),
    ),
)
