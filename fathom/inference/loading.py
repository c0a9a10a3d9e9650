"""Resolves a path or name to weights: a run, a checkpoint, a published directory, a GGUF file or a name."""

from __future__ import annotations

import difflib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.cache import cache_directory
from fathom.checkpoint import store
from fathom.checkpoint.hf.files import CONFIG, find_weights
from fathom.checkpoint.located import check_link, list_directory
from fathom.checkpoint.weights import WeightSource
from fathom.errors import CheckpointError
from fathom.logs import listed
from fathom.progress import NULL_PROGRESS, Progress
from fathom.spec.step_results import RECIPE_FILE, STATE_FILE, result_name

if TYPE_CHECKING:
    from fathom.checkpoint.hub import CachedModel, HubName

GGUF = ".gguf"
PROJECTOR = "mmproj"
"""How names begin of files that hold the image projector of a model, as llama.cpp's converter names them."""


def open_source(path: str | Path, progress: Progress = NULL_PROGRESS, *, cache_dir: Path | None = None) -> WeightSource:
    """Open the model that ``path`` names; reads headers only.

    Paths take precedence: a run (its last step that has a checkpoint), a step, a checkpoint, a
    directory with config.json, a .gguf file, any part of a split one, or a directory with one. Then the names of the
    catalog, fetched into ``cache_dir``, then ``owner/name[@revision][:quantisation]`` or ``owner/name/file.gguf`` of
    the hub, fetched into huggingface_hub's own cache; ``progress`` receives the bytes.

    Raises:
        CheckpointError: nothing loadable; the message lists what may be given.
        SourceError: a name could not be fetched.
    """
    local, name = _open_local(Path(path)), str(path)
    if local is not None:
        return local
    from fathom.inference.catalog import catalog, fetch_named

    if name in catalog():
        return _open_file(fetch_named(catalog()[name], cache_dir, progress))
    wanted = _hub_name(name)
    if wanted is None:
        raise _unknown(name)
    fetched = _fetch_from_hub(wanted, cache_dir, progress)
    return _open_directory(fetched) if fetched.is_dir() else _open_file(fetched)


def check_source(path: str | Path) -> None:
    """Refuse what ``open_source`` cannot open, as far as that shows without fetching anything.

    Raises:
        CheckpointError: as of ``open_source``.
    """
    from fathom.inference.catalog import catalog

    name = str(path)
    if _open_local(Path(path)) is None and name not in catalog() and _hub_name(name) is None:
        raise _unknown(name)


def _open_local(place: Path) -> WeightSource | None:
    """Open a path of this machine; None where there is none."""
    check_link(place)
    if place.is_file():
        return _open_file(place)
    return _open_directory(place) if place.is_dir() else None


def _hub_name(name: str) -> HubName | None:
    from fathom.checkpoint.hub import parse_hub_name

    return None if Path(name.split("/")[0]).exists() else parse_hub_name(name)


def _open_file(file: Path) -> WeightSource:
    if file.suffix.lower() != GGUF:
        raise CheckpointError(f"{file}: is not a model; give a {GGUF} file, or the directory the file lies in")
    from fathom.checkpoint.gguf import GGUFFile

    return GGUFFile.open(file)


def _open_directory(directory: Path) -> WeightSource:
    from fathom.checkpoint.adapter_checkpoint import AdapterCheckpoint
    from fathom.checkpoint.hf import HFCheckpoint
    from fathom.checkpoint.hf.unreadable import explain_nested, explain_unreadable

    check_link(directory / CONFIG)
    has_config = (directory / CONFIG).is_file()
    if has_config and find_weights(directory) is not None:
        return HFCheckpoint.open(directory)
    models = gguf_models(directory)
    if has_config and not models:
        return HFCheckpoint.open(directory)
    if len(models) > 1:
        names = listed([file.name for file in models], 5)
        raise CheckpointError(f"{directory}: holds {len(models)} {GGUF} models ({names}); give one of them")
    if models:
        return _open_file(models[0])
    try:
        checkpoint = find_checkpoint(directory)
    except CheckpointError:
        reason = None if _is_own(directory) else explain_unreadable(directory) or explain_nested(directory)
        if reason is None:
            raise
        raise CheckpointError(f"{directory}: {reason}") from None
    return _open_adapted(checkpoint) if AdapterCheckpoint.is_one(checkpoint) else _open_whole(checkpoint)


def _open_whole(checkpoint: Path) -> WeightSource:
    from fathom.checkpoint.fathom_checkpoint import FathomCheckpoint

    return FathomCheckpoint.open(checkpoint, _tokenizer_of_run(checkpoint))


def _open_adapted(checkpoint: Path) -> WeightSource:
    """Open the base that an adapter of a run was trained on, with the adapter merged into it."""
    from fathom.checkpoint.adapter_checkpoint import AdaptedWeights, AdapterCheckpoint

    opened, run = AdapterCheckpoint.open(checkpoint), find_run(checkpoint)
    if opened.base is None or run is None:
        remedy = "name its base model and give this as the adapter (--adapter)"
        raise CheckpointError(f"{checkpoint}: is an adapter outside the run it was trained in; {remedy}")
    return AdaptedWeights.of(_open_directory(opened.base.find(run)), opened.adapter, checkpoint)


def _is_own(directory: Path) -> bool:
    """Whether a directory is a checkpoint or a run of Fathom's own."""
    return any((directory / name).exists() for name in (store.MANIFEST, STATE_FILE, store.CHECKPOINTS))


def gguf_models(directory: Path) -> list[Path]:
    """Return the GGUF models of a directory: whole files, and one part of each split model; no image projectors."""
    from fathom.checkpoint.gguf.part_names import group_parts, is_gguf

    found = [file for file in list_directory(directory) if is_gguf(file) and not file.name.startswith(".")]
    for file in found:
        check_link(file)
    names = [file.name for file in found if file.is_file()]
    models = [name for name in names if not name.lower().startswith(PROJECTOR)]
    return [directory / name for name in group_parts(models or names)]


def _fetch_from_hub(name: HubName, cache_dir: Path | None, progress: Progress) -> Path:
    from fathom.checkpoint.hub import fetch_model

    return fetch_model(name, progress, former_caches=[_former_cache(cache_dir)])


def _former_cache(cache_dir: Path | None) -> Path:
    """Return where earlier versions kept models of the hub."""
    return (cache_directory() if cache_dir is None else cache_dir).expanduser() / "hub"


def fetched_models(cache_dir: Path | None = None) -> list[CachedModel]:
    """Return the models of the hub that lie on this machine, in huggingface_hub's cache or an earlier version's."""
    from fathom.checkpoint.hub import cached_models, hub_cache

    own = hub_cache()
    return cached_models([*([own] if own is not None else []), _former_cache(cache_dir)])


def _unknown(name: str) -> CheckpointError:
    from fathom.inference.catalog import catalog

    known = list(catalog())
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    meant = f" (did you mean {near[0]}?)" if near else ""
    return CheckpointError(
        f"{name}: no such file, directory or model{meant}; give a run, a checkpoint, a directory with config.json, "
        f"a {GGUF} file, owner/name on the hub, or one of {', '.join(known)}"
    )


def find_checkpoint(directory: Path) -> Path:
    """Return the checkpoint of a run, a step or a checkpoint directory; ``CheckpointError`` where there is none."""
    if (directory / store.MANIFEST).is_file():
        return directory
    if (directory / STATE_FILE).is_file() and (directory / RECIPE_FILE).is_file():
        from fathom.inference.run_record import read_recipe, read_state
        from fathom.spec.recipe import ModelStep

        recipe, states = read_recipe(directory), read_state(directory)
        stages = [step for step in recipe.steps if isinstance(step, ModelStep)]
        for step in reversed(stages):
            found = store.latest(directory / step.name / store.CHECKPOINTS)
            if found is not None:
                return found
        done = ", ".join(name for name, state in states.items() if state.status == "done") or "none"
        raise CheckpointError(
            f"{directory}: has no trained weights yet (steps done: {done}); continue it with: "
            f"fathom train --resume --out {shlex.quote(str(directory))}"
        )
    for root in (directory / store.CHECKPOINTS, directory):
        found = store.latest(root)
        if found is not None:
            return found
    raise CheckpointError(f"{directory}: holds no run, checkpoint or config.json; give the directory of one")


def find_run(directory: Path) -> Path | None:
    """Return the run directory that ``directory`` is or lies in, or None."""
    for candidate in (directory.resolve(), *list(directory.resolve().parents)[:3]):
        if (candidate / STATE_FILE).is_file() and (candidate / RECIPE_FILE).is_file():
            return candidate
    return None


def _tokenizer_of_run(checkpoint: Path) -> Path | None:
    run = find_run(checkpoint)
    if run is None:
        return None
    from fathom.inference.run_record import last_before, read_recipe
    from fathom.spec.recipe import TokenizerStep

    recipe = read_recipe(run)
    step = last_before(recipe, recipe.steps[-1], TokenizerStep)
    return run / result_name(step) if step is not None else None
