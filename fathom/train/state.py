"""Everything a resume needs, as one checkpoint.

Tensors: ``model`` (parameters and buffers by name), ``optimizer`` (by parameter name) and ``random`` (torch's
generators as uint8). Documents: ``spec`` (model and train) and ``state`` (step, tokens, seconds, last loss, loader).
Python's and numpy's generators are not used in training, so they are not saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fathom.checkpoint import store
from fathom.checkpoint.names import current_layout
from fathom.errors import CheckpointError
from fathom.model.decoder import Decoder
from fathom.spec import to_mapping
from fathom.spec.train import UpdateSpec
from fathom.train.optimizer import load_optimizer_tensors, optimizer_tensors
from fathom.train.protocols import Resumable

RESUME_MUTABLE_FIELDS = ("train.checkpoint.", "train.log_every_steps", "train.evaluate_every_steps")


@dataclass(frozen=True, slots=True)
class Position:
    """How far a stage has come: whole steps, the tokens they predicted, their seconds, the last step's loss."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None


def save_state(
    directory: Path,
    *,
    model: Decoder,
    optimizer: torch.optim.AdamW,
    loader: Resumable,
    spec: UpdateSpec,
    position: Position,
    files: Iterable[Path] = (),
) -> Path:
    """Publish a checkpoint from which training goes on bit for bit on the same CPU; ``files`` lie in it too.

    Raises:
        ResourceError: the disk is full; earlier checkpoints are untouched.
    """
    return store.save(
        directory,
        tensors={
            "model": model.state_dict(),
            "optimizer": optimizer_tensors(model, optimizer),
            "random": _random_state(),
        },
        documents={
            "spec": {"model": to_mapping(model.spec), "train": to_mapping(spec)},
            "state": asdict(position) | {"loader": loader.state()},
        },
        files=files,
    )


def load_state(
    directory: Path, *, model: Decoder, optimizer: torch.optim.AdamW, loader: Resumable, spec: UpdateSpec
) -> Position:
    """Put model, optimizer, loader and random state back in place and return the position they stand at.

    Raises:
        CheckpointError: the checkpoint is damaged, or was made with another model or train spec; every differing
            field is named. Cadences of logging, evaluation and checkpoints may differ.
    """
    opened = store.Checkpoint.open(directory)
    _check_spec(directory, opened.document("spec"), {"model": to_mapping(model.spec), "train": to_mapping(spec)})
    load_model_tensors(model, opened.tensors("model"), directory)
    load_optimizer_tensors(model, optimizer, opened.tensors("optimizer"))
    _restore_random(opened.tensors("random"))
    state = opened.document("state")
    loader.restore(state.pop("loader"))
    return Position(**state)


def load_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Copy tensors into a model's parameters and buffers; names and shapes must agree exactly.

    Raises:
        CheckpointError: listing all that are missing, unexpected or of another shape.
    """
    tensors = {name: current_layout(name, tensor) for name, tensor in tensors.items()}
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is unexpected" for name in tensors if name not in own]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if problems:
        raise CheckpointError(f"{directory}: {'; '.join(problems)}; use the checkpoint of this very model")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _check_spec(directory: Path, saved: Any, current: Any) -> None:
    before, now = dict(_flat(saved)), dict(_flat(current))
    differing = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not name.startswith(RESUME_MUTABLE_FIELDS)
    ]
    if differing:
        raise CheckpointError(
            f"{directory}: cannot resume, {'; '.join(differing)}; use the former values or start in a new directory"
        )


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"].clone())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].clone())
