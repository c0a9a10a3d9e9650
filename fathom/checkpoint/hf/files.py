"""The files of a Hugging Face directory: names, the index of tensors, and reading JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fathom.checkpoint.hf.unreadable import explain_unreadable
from fathom.checkpoint.located import check_link, find_file
from fathom.checkpoint.tensorfile import TensorFile
from fathom.errors import CheckpointError
from fathom.files import DESCRIPTION_BYTES, pointer_remedy, read_text
from fathom.logs import listed
from fathom.tokenizer.chat_templates import PROCESSOR_FILE, TEMPLATE_FILE

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = (
    *(TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *(TEMPLATE_FILE, PROCESSOR_FILE),
)
"""What is copied beside the weights, where it exists; tokenizer.json must."""
SUFFIX = ".safetensors"
_INDEX = ".index.json"
_LISTED = 5
_LARGEST_INDEX = 64 * 2**20
"""Bytes; those of a million million parameters in single experts have 15."""


def shard_name(index: int, count: int) -> str:
    """Return the usual name of one of several weight files."""
    return WEIGHTS if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def find_weights(directory: Path, named: object = None) -> Path | None:
    """Return the file of weights or the index that is read, in transformers' order; None where there is none.

    A file that config.json names (``transformers_weights``) comes first, then the whole model.safetensors, even
    beside an index, then the index. Names may be written in any case.

    Raises:
        CheckpointError: a link leads nowhere, or ``named`` is no safetensors file or index of the directory.
    """
    if named is not None:
        if not isinstance(named, str) or Path(named).name != named or not named.endswith((SUFFIX, f"{SUFFIX}{_INDEX}")):
            raise CheckpointError(
                f"{directory / CONFIG}: transformers_weights is {named!r}, no {SUFFIX} file or index of the directory; "
                "remove the field to read the usual files"
            )
        found = find_file(directory, named)
        if found is None:
            raise CheckpointError(f"{directory / named}: is missing, and {CONFIG} names it; download the file")
        return found
    return find_file(directory, WEIGHTS) or find_file(directory, INDEX)


def tensor_files(directory: Path, named: object = None) -> dict[str, TensorFile]:
    """Read all headers, and say which file holds each published tensor; ``named`` is config.json's own choice."""
    weights = find_weights(directory, named)
    if weights is None:
        reason = explain_unreadable(directory) or f"holds neither {WEIGHTS} nor {INDEX}; check the path"
        raise CheckpointError(f"{directory}: {reason}")
    if weights.name.lower().endswith(_INDEX):
        return _indexed(directory, weights)
    file = TensorFile.open(weights)
    return dict.fromkeys(file.entries, file)


def shard_names(index: Path) -> dict[str, str]:
    """Read an index: the file of every tensor; ``CheckpointError`` where it names anything but files beside it."""
    placed = read_json(index, _LARGEST_INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{index}: has no weight_map; download the file again")
    for file in placed.values():
        if not isinstance(file, str) or Path(file).name != file or "\\" in file or not file.lower().endswith(SUFFIX):
            raise CheckpointError(
                f"{index}: names {file!r}, which is no {SUFFIX} file of its directory; download the index again"
            )
    return placed


def _indexed(directory: Path, index: Path) -> dict[str, TensorFile]:
    placed = shard_names(index)
    located = {file: find_file(directory, file) for file in sorted(set(placed.values()))}
    absent = [file for file, found in located.items() if found is None]
    if absent:
        raise CheckpointError(
            f"{directory}: {len(absent)} of {len(located)} files of {index.name} are missing "
            f"({listed(absent, _LISTED)}); download them into the directory"
        )
    files = {file: TensorFile.open(found) for file, found in located.items() if found is not None}
    for name, file in placed.items():
        if name not in files[file].entries:
            raise CheckpointError(
                f"{directory / file}: lacks {name}, which {index.name} places there; download the file again"
            )
    return {name: files[file] for name, file in placed.items()}


def read_json(path: Path, most: int = DESCRIPTION_BYTES) -> dict[str, Any]:
    """Read a JSON object; ``CheckpointError`` names the file where it is missing, unreadable or something else."""
    check_link(path)
    try:
        text = read_text(path, most)
        pointer = pointer_remedy(text[:64].encode())
        if pointer is not None:
            raise CheckpointError(f"{path}: {pointer}")
        content = json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing; name a directory with {CONFIG} and weights") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); download the file again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is no JSON object; download the file again")
    return content
