"""Checkpoints on disk: safetensors and JSON in one directory that appears whole or not at all.

    DIRECTORY/
    ├── STEM.safetensors   tensors, one file per stem
    ├── STEM.json          documents, one file per stem
    └── manifest.json      format version, size and SHA-256 of every other file, aliases of shared tensors

``save`` writes a temporary sibling, forces every file to disk, and publishes by renaming the directory. A process
killed at any moment leaves the earlier checkpoints as they were and at most one hidden temporary, which the next
``prune`` removes. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fathom.errors import CheckpointError, ResourceError

FORMAT = "fathom-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NUMBERED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*-(\d+)")
_HASH_BLOCK = 1 << 20


def save(directory: Path, *, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, Any]) -> Path:
    """Publish a checkpoint at ``directory`` and return it; one already there is replaced.

    Args:
        directory: where the checkpoint appears; its parents are made.
        tensors: file stem -> name -> tensor, on any device, of any strides. Tensors that are the same memory are
            written once; views that merely overlap are written out each.
        documents: file stem -> anything JSON can hold.

    Raises:
        ResourceError: the disk is full or refuses; the temporary is removed and what was published before stays.
        CheckpointError: a stem is not a plain file name, or a document holds what JSON cannot.
    """
    for stem in (*tensors, *documents):
        if not _STEM.fullmatch(stem) or stem == Path(MANIFEST).stem:
            raise CheckpointError(f"{directory}: file stem {stem!r} cannot be used; use letters, digits, - _ and .")
    temporary = _hidden(directory, "saving")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        temporary.mkdir()
        _write(temporary, tensors, documents)
        _publish(temporary, directory)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise ResourceError(
            f"{directory}: checkpoint not saved ({reason}); free disk space or choose another directory, "
            "earlier checkpoints are intact"
        ) from error
    finally:
        _remove(temporary)
    return directory


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A published checkpoint whose files were checked when it was opened."""

    directory: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, directory: Path, *, verify: bool = True) -> Checkpoint:
        """Open a checkpoint; sizes are always compared with the manifest, checksums when ``verify``.

        Raises:
            CheckpointError: nothing there, a file missing, cut short or changed, or a newer format. The message
                names the file and the remedy.
        """
        manifest = _read_manifest(directory)
        for name, entry in manifest["files"].items():
            _check_file(directory / name, entry, verify)
        return cls(directory, manifest)

    def tensors(self, stem: str, *, device: str = "cpu") -> dict[str, Tensor]:
        """Return the tensors of ``STEM.safetensors`` by name; names that were one memory are one tensor again."""
        path = self._path(f"{stem}.safetensors")
        try:
            loaded: dict[str, Tensor] = load_file(path, device=device)
        except (OSError, SafetensorError) as error:
            raise _damaged(path, f"cannot be read ({error})") from error
        aliases: Mapping[str, str] = self.manifest.get("aliases", {}).get(path.name, {})
        return loaded | {name: loaded[original] for name, original in aliases.items()}

    def document(self, stem: str) -> Any:
        """Return what ``STEM.json`` holds."""
        path = self._path(f"{stem}.json")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _damaged(path, f"cannot be read ({error})") from error

    def _path(self, name: str) -> Path:
        if name not in self.manifest["files"]:
            known = ", ".join(sorted(self.manifest["files"]))
            raise CheckpointError(f"{self.directory}: holds no {name}; it holds {known}")
        return self.directory / name


def step_directory(root: Path, step: int) -> Path:
    """Where the checkpoint taken after ``step`` steps lives: ``root/step-00000042``."""
    return root / f"step-{step:08d}"


def published(root: Path) -> list[Path]:
    """Finished checkpoints directly below ``root``, by rising number at the end of their names."""
    if not root.is_dir():
        return []
    numbered = [(int(match[1]), path) for path in root.iterdir() if (match := _NUMBERED.fullmatch(path.name))]
    return [path for _, path in sorted(numbered) if (path / MANIFEST).is_file()]


def latest(root: Path) -> Path | None:
    """The finished checkpoint of the highest number below ``root``; unfinished ones do not count."""
    found = published(root)
    return found[-1] if found else None


def prune(root: Path, keep: int) -> None:
    """Remove all but the ``keep`` latest checkpoints below ``root``, and what killed processes left unfinished.

    A checkpoint is renamed out of sight before its files go, so that none is ever seen half removed.
    Only the process that saves into ``root`` may prune it.
    """
    if keep < 1:
        raise ValueError(f"keep must be 1 or more, got {keep}")
    for path in published(root)[:-keep]:
        hidden = _hidden(path, "removing")
        _remove(hidden)
        with suppress(OSError):
            path.rename(hidden)
    for path in root.glob(".*.replaced"):
        _put_back(path)
    for pattern in (".*.saving", ".*.removing"):
        for path in root.glob(pattern):
            _remove(path)


def _write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, Any]) -> None:
    files: dict[str, dict[str, Any]] = {}
    aliases: dict[str, dict[str, str]] = {}
    for stem, document in documents.items():
        path = folder / f"{stem}.json"
        path.write_text(_json(path, document), encoding="utf-8")
        files[path.name] = _sync_and_describe(path)
    mode = 0o666 & ~_umask(folder)
    for stem, named in tensors.items():
        path = folder / f"{stem}.safetensors"
        distinct, aliases[path.name] = _without_sharing(named)
        save_file(distinct, path)
        path.chmod(mode)
        files[path.name] = _sync_and_describe(path)
    manifest = {"format": FORMAT, "version": VERSION, "files": files}
    manifest |= {"aliases": {name: same for name, same in aliases.items() if same}}
    path = folder / MANIFEST
    path.write_text(_json(path, manifest), encoding="utf-8")
    _sync(path)
    _sync(folder)


def _without_sharing(named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split into tensors that share no memory, contiguous, and names that stand for one of them."""
    distinct: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    storages: set[tuple[Any, ...]] = set()
    for name, given in named.items():
        tensor = given.detach()
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        identity = (storage, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and identity in first:
            aliases[name] = first[identity]
            continue
        first[identity] = name
        tensor = tensor.contiguous()
        distinct[name] = tensor.clone() if storage in storages and tensor.numel() else tensor
        storages.add(storage)
    return distinct, aliases


def _publish(temporary: Path, directory: Path) -> None:
    replaced = _hidden(directory, "replaced")
    if directory.exists():
        _remove(replaced)
        directory.rename(replaced)
    try:
        temporary.replace(directory)
    except OSError:
        if replaced.exists():
            replaced.rename(directory)
        raise
    _sync(directory.parent)
    _remove(replaced)


def _put_back(replaced: Path) -> None:
    """Undo a replacement whose process died between its two renames."""
    directory = replaced.with_name(replaced.name.removeprefix(".").removesuffix(".replaced"))
    if directory.exists():
        _remove(replaced)
    else:
        replaced.rename(directory)


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint; check the path")
    if not path.is_file():
        raise CheckpointError(f"{directory}: is no finished checkpoint, {MANIFEST} is missing; use another checkpoint")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, f"cannot be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is not a {FORMAT} manifest; check the path")
    version = manifest.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise CheckpointError(f"{path}: format version {version}, this Fathom reads up to {VERSION}; upgrade fathom-lm")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_STEM.fullmatch(name) for name in files):
        raise _damaged(path, "lists no files, or files outside its directory")
    return manifest


def _check_file(path: Path, entry: Mapping[str, Any], verify: bool) -> None:
    if not path.is_file():
        raise _damaged(path, "is missing")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise _damaged(path, f"has {size} bytes instead of {entry['bytes']}")
    if verify and _digest(path) != entry["sha256"]:
        raise _damaged(path, "has the wrong SHA-256")


def _damaged(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {problem}; restore the file, or delete {path.parent} to go on from an earlier checkpoint"
    )


def _json(path: Path, document: Any) -> str:
    try:
        return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name}: cannot be written as JSON ({error}); keep to plain values") from error


def _sync_and_describe(path: Path) -> dict[str, Any]:
    _sync(path)
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Force a file or a directory's entries to disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask(folder: Path) -> int:
    """The umask, read off a directory that was just made (asking the process for it would change it)."""
    return 0o777 & ~folder.stat().st_mode


def _hidden(directory: Path, purpose: str) -> Path:
    return directory.with_name(f".{directory.name}.{purpose}")


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
