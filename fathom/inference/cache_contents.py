"""What the caches hold: sizes, ages, whose each entry is; and removing Fathom's own."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fathom import products
from fathom.checkpoint.hub.fetch import hub_cache
from fathom.errors import ResourceError, explain_os_error
from fathom.files import is_leftover, remove_directory, remove_leftovers
from fathom.inference.catalog import catalog

Kind = Literal["model", "package", "hub", "unknown"]
KINDS: tuple[Kind, ...] = ("model", "package", "hub")
_SHA256 = re.compile("[0-9a-f]{64}")
_REPOSITORY = re.compile("models--(.+?)--(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """Something in a cache: bytes of its files, links not followed, and seconds since the last of them changed.

    Only what is ``owned``, fetched by Fathom into its own cache, is ever removed.
    """

    kind: Kind
    name: str
    path: Path
    nbytes: int
    age: float
    owned: bool


def cache_entries(cache: Path) -> Iterator[CacheEntry]:
    """Yield what Fathom's cache holds, and the models in huggingface_hub's; links are never followed."""
    for path in _listed(cache):
        if path.name == "models" and _is_folder(path):
            named = {model.member_sha256: model.name for model in catalog().values()}
            yield from (_entry("model", each, owned=True, names=named) for each in _listed(path))
        elif path.name == "hub" and _is_folder(path):
            yield from (_entry("hub", each, owned=True) for each in _listed(path))
        elif path.name != products.FOLDER:  # measurements of this machine, which nobody fetched
            yield _entry("package", path, owned=True)
    own = hub_cache()
    for path in _listed(own) if own is not None and own != cache / "hub" else ():
        if _REPOSITORY.fullmatch(path.name) and _is_folder(path):
            yield _entry("hub", path, owned=False)


def remove_entry(entry: CacheEntry) -> None:
    """Remove what is owned; a reader never sees it half removed.

    Raises:
        ResourceError: it is not owned, or the file system refuses.
    """
    if not entry.owned or not _is_folder(entry.path):
        raise ResourceError(f"{entry.path}: was not put there by Fathom; remove it by hand if it is of no use")
    try:
        remove_directory(entry.path)
    except OSError as error:
        raise ResourceError(f"{entry.path}: not removed, {explain_os_error(error)}") from error


def remove_abandoned(cache: Path) -> None:
    """Remove what killed downloads left; what is being written is locked and stays."""
    for folder in (cache, cache / "models"):
        if _is_folder(folder):
            remove_leftovers(folder)


def _entry(kind: Kind, path: Path, *, owned: bool, names: Mapping[str, str] | None = None) -> CacheEntry:
    nbytes, changed = _measured(path)
    hashed = _SHA256.fullmatch(path.name) is not None
    repository = _REPOSITORY.fullmatch(path.name)
    known = (repository is not None if kind == "hub" else hashed) and _is_folder(path)
    name = path.name
    if repository is not None:
        name = f"{repository[1]}/{repository[2]}"
    elif hashed and _is_folder(path):
        name = (names or {}).get(path.name) or ", ".join(sorted(each.name for each in _listed(path))) or path.name
    return CacheEntry(
        kind=kind if known else "unknown",
        name=name,
        path=path,
        nbytes=nbytes,
        age=time.time() - changed,
        owned=owned and known,
    )


def _measured(path: Path) -> tuple[int, float]:
    total, changed = 0, 0.0
    for file in _files(path):
        try:
            status = file.lstat()
        except OSError:
            continue
        total, changed = total + (0 if file.is_symlink() else status.st_size), max(changed, status.st_mtime)
    return total, changed or time.time()


def _files(path: Path) -> Iterator[Path]:
    if not _is_folder(path):
        yield path
        return
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in names)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not is_leftover(path))
    except OSError:
        return []
