"""Everything a resume needs, as one checkpoint.

Tensors: ``model`` (parameters and buffers by name), or ``adapter`` (its parameters) where one is trained, and
``optimizer`` (by parameter name). Documents: ``spec`` (model, train, and the base of an adapter) and ``state`` (step,
tokens, seconds, last loss, loader). No generator's state is saved: whatever training
draws is a function of a seed and a counter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from fathom.checkpoint import store
from fathom.checkpoint.adapter_checkpoint import STEM as ADAPTER
from fathom.checkpoint.adapter_checkpoint import AdapterBase
from fathom.checkpoint.names import current_layout
from fathom.checkpoint.sharded.loading import load_sharded, open_checkpoint
from fathom.checkpoint.sharded.saving import ShardedSaver
from fathom.errors import CheckpointError, SpecError, shortened
from fathom.files import folder_bytes
from fathom.model.adapters.attach import learned_state
from fathom.model.decoder import Decoder
from fathom.spec import ModelSpec, check, from_mapping, to_mapping
from fathom.spec.mapping import MAX_INTEGER
from fathom.spec.resume import FieldChange, flatten, spec_changes
from fathom.spec.train import UpdateSpec
from fathom.train.optimizer import empty_optimizer_tensors, load_optimizer_tensors, optimizer_tensors
from fathom.train.protocols import Resumable

OPTIMIZER = "optimizer"
"""File stem of the optimizer's state."""


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
    optimizer: torch.optim.Optimizer,
    loader: Resumable,
    spec: UpdateSpec,
    position: Position,
    files: Iterable[Path] = (),
    base: AdapterBase | None = None,
    saver: ShardedSaver | None = None,
    published: Callable[[Path], None] = lambda path: None,
    wait: bool = True,
) -> Path:
    """Publish a checkpoint from which training resumes bit for bit on the same CPU; ``files`` lie in it too.

    ``base`` is where the weights are that an adapter was trained on. Ranks that hold parts of the model save through
    ``saver``, and unless they ``wait``, training goes on meanwhile. ``published`` is called once it is there.

    Raises:
        ResourceError: the disk is full; earlier checkpoints are untouched.
    """
    tensors = {learned_stem(model): learned_state(model), OPTIMIZER: optimizer_tensors(model, optimizer)}
    documents = {
        "spec": {"model": to_mapping(model.spec), "train": to_mapping(spec)}
        | ({} if base is None else {"base": to_mapping(base)}),
        "state": asdict(position) | {"loader": loader.state()},
    }
    if saver is not None:
        return saver.save(
            directory, tensors=tensors, documents=documents, files=tuple(files), published=published, wait=wait
        )
    store.save(directory, tensors=tensors, documents=documents, files=files)
    published(directory)
    return directory


def load_state(
    directory: Path,
    *,
    model: Decoder,
    optimizer: torch.optim.Optimizer,
    loader: Resumable,
    spec: UpdateSpec,
    allow_changes: bool = False,
    processes: ProcessGroup | None = None,
) -> tuple[Position, list[FieldChange]]:
    """Restore model, optimizer and loader; return the position they stand at, and the changes to record.

    ``fathom.spec.resume`` says which fields of ``spec`` may differ from those the checkpoint was saved with; those that
    change what is learned may where ``allow_changes``. Of a model that ``processes`` hold in parts each reads its own.

    Raises:
        CheckpointError: the checkpoint is damaged, or was saved with a model or spec that may not differ; every such
            field is named; or it is a finished stage's, without the optimizer's state.
    """
    opened = open_checkpoint(directory, processes)
    if not has_optimizer(opened):
        problem = "the stage was done, and its optimizer state was dropped"
        raise CheckpointError(f"{directory}: {problem}; start a new stage from its model")
    changes = _spec_changes(directory, opened.document("spec"), model.spec, spec, allow_changes=allow_changes)
    if processes is None:
        load_model_tensors(model, opened.tensors(learned_stem(model)), directory)
        load_optimizer_tensors(model, optimizer, opened.tensors(OPTIMIZER))
    else:
        moments = empty_optimizer_tensors(model, optimizer, opened.tensors(OPTIMIZER).keys())
        load_sharded(opened, {learned_stem(model): learned_state(model), OPTIMIZER: moments}, processes)
    position, place = _position(directory, opened.document("state"))
    try:
        loader.restore(place)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _unusable(directory, f"loader: {type(error).__name__}: {error}") from error
    return position, changes


def has_optimizer(opened: store.Checkpoint) -> bool:
    """Whether training can go on from a checkpoint."""
    return bool(opened.tensor_files(OPTIMIZER))


def drop_optimizer(root: Path) -> int:
    """Leave of a finished stage's checkpoints below ``root`` the last one, without the optimizer; return bytes freed.

    A process killed meanwhile leaves checkpoints of which each opens.

    Raises:
        CheckpointError: the last one's manifest is damaged.
        ResourceError: the disk refuses; the last checkpoint is as it was.
    """
    last = store.latest(root)
    if last is None:
        return 0
    before = folder_bytes(root)
    store.drop_tensors(last, OPTIMIZER)
    store.prune(root, 1)
    return before - folder_bytes(root)


def learned_stem(model: Decoder) -> str:
    """Return the file stem of what training changes of a model."""
    return "model" if model.adaptation is None else ADAPTER


def _position(directory: Path, state: Any) -> tuple[Position, dict[str, Any]]:
    """Return the position that a checkpoint records, and the loader's place."""
    if not isinstance(state, dict) or not isinstance(state.get("loader"), dict):
        raise _unusable(directory, "loader is missing")
    try:
        position = from_mapping(Position, {name: value for name, value in state.items() if name != "loader"})
        for field in ("step", "tokens", "seconds"):
            check.count(field, getattr(position, field), MAX_INTEGER, least=0)
    except SpecError as error:
        raise _unusable(directory, str(error)) from None
    return position, state["loader"]


def _unusable(directory: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{directory / 'state.json'}: is not the state of training ({shortened(why)}); continue from an earlier "
        "checkpoint, or begin again with --restart"
    )


def load_model_tensors(model: Decoder, tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Copy tensors into what training changes of a model; names and shapes must agree exactly.

    Raises:
        CheckpointError: listing all that are missing, unexpected or of another shape.
    """
    tensors = {name: current_layout(name, tensor) for name, tensor in tensors.items()}
    own = learned_state(model)
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


def _spec_changes(
    directory: Path, saved: Any, model: ModelSpec, spec: UpdateSpec, *, allow_changes: bool
) -> list[FieldChange]:
    """Return the accepted changes that are to be recorded; specs under former field names are read as well."""
    try:
        before = {
            "model": to_mapping(from_mapping(ModelSpec, saved["model"], "model")),
            "train": to_mapping(from_mapping(type(spec), saved["train"], "train")),
        }
    except (KeyError, TypeError, SpecError) as error:
        raise CheckpointError(f"{directory}: its spec cannot be read ({error}); start in a new directory") from None
    was, now = dict(flatten(before["model"])), dict(flatten(to_mapping(model)))
    refused = [
        f"model.{name} was {was.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    ]
    changes = spec_changes(type(spec), before["train"], to_mapping(spec))
    denied = [each for each in changes if each.effect == "fixed" or (each.effect == "learning" and not allow_changes)]
    refused += [f"train.{each.field} was {each.old!r} and is {each.new!r}" for each in denied]
    if refused:
        allowing = len(refused) == len(denied) and all(each.effect == "learning" for each in denied)
        remedy = "allow changes (allow_changes=True)" if allowing else "start in a new directory"
        raise CheckpointError(f"{directory}: cannot resume, {'; '.join(refused)}; use the former values or {remedy}")
    return [each for each in changes if each.effect != "cadence"]
