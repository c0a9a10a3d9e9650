"""A cache of tensors that are slow to compute: one safetensors file, valid for one key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fathom.checkpoint.tensorfile import TensorFile, write_tensors
from fathom.errors import CheckpointError
from fathom.files import sha256

_KEY, _CONTENT = "key", "sha256"


def cached_tensors(path: Path, key: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of ``path``; where it holds none of this ``key``, compute them and publish the file.

    ``key`` is a digest of everything that ``compute`` depends on. A file that is damaged is computed anew.

    Raises:
        ResourceError: the file system refuses the new file.
    """
    found = _read(path, key)
    if found is None:
        found = {name: tensor.contiguous().cpu() for name, tensor in compute().items()}
        write_tensors(path, found, metadata={_KEY: key, _CONTENT: _digest(found)})
    return found


def _read(path: Path, key: str) -> dict[str, Tensor] | None:
    if not path.is_file():
        return None
    try:
        file = TensorFile.open(path)
        if file.metadata.get(_KEY) != key:
            return None
        found = {name: file.read(name) for name in sorted(file.entries)}
    except CheckpointError:
        return None
    return found if file.metadata.get(_CONTENT) == _digest(found) else None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of names, types, shapes and bytes."""
    return sha256(repr([(name, str(t.dtype), tuple(t.shape), _content(t)) for name, t in sorted(tensors.items())]))


def _content(tensor: Tensor) -> str:
    return sha256(tensor.flatten().view(torch.uint8).numpy().data) if tensor.numel() else ""
