"""Reading and writing a Hugging Face directory: config.json and safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fathom.checkpoint.tensorfile import TensorFile, TensorFileWriter
from fathom.errors import CheckpointError
from fathom.files import json_text, publish_directory
from fathom.study.switch_t5.model import EncoderDecoder, build
from fathom.study.switch_t5.names import check_names, copies, from_hf, to_hf
from fathom.study.switch_t5.spec import spec_from_config, spec_to_config

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def load(directory: Path | str, *, dtype: torch.dtype = torch.float32) -> EncoderDecoder:
    """Open a Switch checkpoint as transformers writes it, whole or in shards, in evaluation mode.

    ``dtype`` is what the weights are converted to; routers are float32 always.

    Raises:
        CheckpointError: a file is missing or damaged, or the tensors are not those the config.json asks for.
        SpecError: the config.json asks for what is not built.
    """
    root = Path(directory)
    spec = spec_from_config(_read_json(root / _CONFIG), name=root.name)
    places = _places(root)
    check_names(spec, {name: file.entries[name].shape for name, file in places.items()}, str(root))
    published = {name: file.read(name) for name, file in places.items()}
    for name, source in copies(spec).items():
        if name in published and not torch.equal(published[name], published[source]):
            raise CheckpointError(f"{root}: {name} differs from {source}; only one common embedding is built")
    model = build(spec, seed=None, dtype=dtype)
    with torch.no_grad():
        state = model.state_dict()
        for name, tensor in from_hf(spec, published).items():
            state[name].copy_(tensor)
    return model.eval()


def save(directory: Path | str, model: EncoderDecoder) -> Path:
    """Write a directory that transformers opens, atomically.

    Raises:
        CheckpointError: the directory exists.
        SpecError: the Hugging Face config cannot express the model.
    """
    root = Path(directory)
    config = spec_to_config(model.spec)
    if root.exists():
        raise CheckpointError(f"{root}: exists already; choose a new directory")
    tensors = {name: tensor.contiguous() for name, tensor in to_hf(model.spec, model.state_dict()).items()}
    config["dtype"] = str(model.shared.weight.dtype).removeprefix("torch.")
    with publish_directory(root) as hidden:
        (hidden / _CONFIG).write_text(json_text(config, indent=2), encoding="utf-8")
        entries = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
        with TensorFileWriter(hidden / _WEIGHTS, entries) as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor)
    return root


def _places(root: Path) -> Mapping[str, TensorFile]:
    """Which file holds each tensor."""
    if (root / _INDEX).is_file():
        index = _read_json(root / _INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(_plain(name) for name in index.values()):
            raise CheckpointError(f"{root / _INDEX}: weight_map is no table of file names; download it again")
        files = {name: TensorFile.open(root / name) for name in sorted(set(index.values()))}
        for tensor, name in index.items():
            if tensor not in files[name].entries:
                raise CheckpointError(f"{root / name}: lacks {tensor}, which {_INDEX} promises; download both again")
        return {tensor: files[name] for tensor, name in index.items()}
    if not (root / _WEIGHTS).is_file():
        pickled = (root / "pytorch_model.bin").exists() or (root / "pytorch_model.bin.index.json").exists()
        remedy = "convert pytorch_model.bin with transformers' save_pretrained" if pickled else "check the path"
        raise CheckpointError(f"{root}: holds no {_WEIGHTS}; {remedy}")
    file = TensorFile.open(root / _WEIGHTS)
    return dict.fromkeys(file.entries, file)


def _plain(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give the folder of a Switch checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); download the file again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: is no table; download the file again")
    return found
