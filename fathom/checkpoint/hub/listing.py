"""The models of the hub that lie in a cache whole, and so open by name without the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fathom.checkpoint.hf.files import CONFIG, read_json
from fathom.checkpoint.hub.cached import cached_files, cached_model
from fathom.checkpoint.hub.choice import gguf_choices, has_safetensors
from fathom.checkpoint.hub.names import HubName
from fathom.errors import FathomError
from fathom.spec.hf import spec_from_hf


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model in a cache: the name that opens it, and the bytes of its weights."""

    name: HubName
    nbytes: int


def cached_models(caches: Sequence[Path]) -> list[CachedModel]:
    """Return the models of families that Fathom builds in some caches, by name; each once."""
    found: dict[HubName, CachedModel] = {}
    for cache in caches:
        for folder in _repositories(cache):
            owner, _, name = folder.name.removeprefix("models--").partition("--")
            for model in _models(HubName(f"{owner}/{name}"), cache):
                found.setdefault(model.name, model)
    return sorted(found.values(), key=lambda model: str(model.name).lower())


def _repositories(cache: Path) -> list[Path]:
    try:
        return sorted(cache.glob("models--*--*"))
    except OSError:  # a cache that may not be read holds nothing for us
        return []


def _models(repository: HubName, cache: Path) -> Iterator[CachedModel]:
    snapshot, files = cached_files(repository, cache)
    if snapshot is None:
        return
    if has_safetensors(files) and cached_model(repository, cache) is not None and _is_built(snapshot / CONFIG):
        weights = [file for file in files if "/" not in file and file.endswith(".safetensors")]
        yield CachedModel(repository, _nbytes(snapshot, weights))
    for choice in gguf_choices(files):
        name = HubName(repository.repo_id, None, choice.tag or choice.opens)
        path = cached_model(name, cache) if choice.is_read else None
        if path == snapshot / choice.opens:
            yield CachedModel(name, _nbytes(snapshot, choice.files))


def _is_built(config: Path) -> bool:
    try:
        spec_from_hf(read_json(config))
    except FathomError:
        return False
    return True


def _nbytes(snapshot: Path, files: Sequence[str]) -> int:
    return sum((snapshot / file).stat().st_size for file in files)
