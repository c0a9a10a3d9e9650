"""The files of a Hugging Face directory: names, the index of tensors, and reading JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fathom.checkpoint.tensorfile import TensorFile
from fathom.errors import CheckpointError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What is copied beside the weights, where it exists; tokenizer.json must."""


def shard_name(index: int, count: int) -> str:
    """Return the usual name of one of several weight files."""
    return WEIGHTS if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def tensor_files(directory: Path) -> dict[str, TensorFile]:
    """Read all headers, and say which file holds each published tensor."""
    single, index = directory / WEIGHTS, directory / INDEX
    if index.is_file():
        return _indexed(directory, index)
    if single.is_file():
        file = TensorFile.open(single)
        return dict.fromkeys(file.entries, file)
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        raise CheckpointError(f"{directory}: holds pickled weights, which are never read; convert them to safetensors")
    raise CheckpointError(f"{directory}: holds neither {WEIGHTS} nor {INDEX}; check the path")


def _indexed(directory: Path, index: Path) -> dict[str, TensorFile]:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{index}: has no weight_map; download the file again")
    absent = sorted({str(file) for file in placed.values() if not _inside(directory, file)})
    if absent:
        raise CheckpointError(
            f"{directory}: {len(absent)} files of the index are missing ({', '.join(absent[:5])}); "
            "download them into the directory"
        )
    files = {name: TensorFile.open(directory / name) for name in sorted(set(placed.values()))}
    for name, file in placed.items():
        if name not in files[file].entries:
            raise CheckpointError(
                f"{directory / file}: lacks {name}, which {INDEX} places there; download the file again"
            )
    return {name: files[file] for name, file in placed.items()}


def _inside(directory: Path, file: object) -> bool:
    """Whether an index names a plain file of its own directory."""
    return isinstance(file, str) and Path(file).name == file and (directory / file).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ``CheckpointError`` names the file where it is missing, unreadable or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing; name a directory with {CONFIG} and weights") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); download the file again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is no JSON object; download the file again")
    return content
