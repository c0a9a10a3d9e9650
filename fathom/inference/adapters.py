"""Opens an adapter: PEFT's directory, or what a step of a run trained."""

from __future__ import annotations

from pathlib import Path

from fathom.checkpoint.adapter_checkpoint import AdaptedWeights, AdapterCheckpoint
from fathom.checkpoint.peft import CONFIG, read_peft, write_peft
from fathom.checkpoint.weights import WeightSource
from fathom.errors import CheckpointError, SpecError
from fathom.inference.loading import find_checkpoint
from fathom.model.adapters.adapter import Adapter
from fathom.spec import ModelSpec

PEFT = "peft"


def open_adapter(path: str | Path, spec: ModelSpec) -> Adapter:
    """Read the adapter at ``path``: a directory with adapter_config.json, a run, a step or a checkpoint of one.

    Raises:
        CheckpointError: there is none, or it is of another model, shape or rank.
    """
    place = Path(path)
    if (place / CONFIG).is_file():
        return read_peft(place, spec)
    if not place.is_dir():
        raise CheckpointError(
            f"{path}: no such directory; give an adapter's, with {CONFIG}, or a step that trained one"
        )
    try:
        checkpoint = find_checkpoint(place)
    except CheckpointError:
        checkpoint = place
    if not AdapterCheckpoint.is_one(checkpoint):
        raise CheckpointError(f"{path}: holds no adapter; give a directory with {CONFIG}, or a step that trained one")
    return AdapterCheckpoint.open(checkpoint).adapter


def with_adapter_of(source: WeightSource, adapter: str | Path | None) -> WeightSource:
    """Return a model with the adapter at a path merged into it as it is read, or the model where there is none."""
    if adapter is None:
        return source
    return AdaptedWeights.of(source, open_adapter(adapter, source.spec), Path(adapter))


def export_adapter(source: WeightSource, destination: Path) -> tuple[Path, str]:
    """Write a model's adapter in PEFT's form; return where it is, and a sentence on the base that it belongs to.

    Raises:
        SpecError: the model has no adapter.
        CheckpointError: the destination exists, or the family has no published names.
    """
    if not isinstance(source, AdaptedWeights):
        raise SpecError("--to", f"{source.path} has no adapter", "give a run that trained one, or --adapter")
    base = source.base
    written = write_peft(destination, source.spec, source.adapter, base=str(base.path) if base.form == "hf" else None)
    if base.form == "hf":
        return written, f"its base model is {base.path}"
    return written, f"PEFT opens it over its base: fathom convert {base.path} DIRECTORY --to hf"
