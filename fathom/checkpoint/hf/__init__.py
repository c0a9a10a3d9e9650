"""Hugging Face directories: config.json beside model.safetensors, or beside shards with an index; read and written.

Reading takes safetensors only (no pickle) and checks every name and shape before a tensor is read. Writing is
atomic. Both hold one
Hugging Face tensor beside the stream of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fathom.checkpoint.hf.read import HFCheckpoint
from fathom.checkpoint.hf.write import write_hf
from fathom.checkpoint.names import name_table
from fathom.checkpoint.weights import StateWeights
from fathom.model.build import parameter_shapes
from fathom.spec import ModelSpec
from fathom.spec.hf import ExtraConfig

__all__ = ["HFCheckpoint", "load_hf", "save_hf", "write_hf"]


def load_hf(directory: Path) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Read a published directory into a spec and a state for ``Decoder.load_state_dict``; errors as in ``open``."""
    published = HFCheckpoint.open(directory)
    return published.spec, dict(published.stream())


def save_hf(
    directory: Path,
    spec: ModelSpec,
    state: Mapping[str, Tensor],
    *,
    carried: ExtraConfig | None = None,
    tokenizer: Path | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write a whole state dict, on any device and in its own types, by ``write_hf``; errors as there."""
    name_table(spec).check_ours({name: tuple(tensor.shape) for name, tensor in state.items()})
    ordered = {name: state[name] for name in parameter_shapes(spec)}
    weights = StateWeights(spec, ordered)
    return write_hf(directory, weights, carried=carried, tokenizer=tokenizer, max_shard_bytes=max_shard_bytes)
