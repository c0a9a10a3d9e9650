"""Checkpoints on disk: safetensors and JSON in one directory, written atomically.

    DIRECTORY/
    ├── STEM.safetensors   tensors, one file per stem
    │   or, where several processes saved (``fathom.checkpoint.sharded``), what each wrote, and where it belongs:
    ├── STEM-RRRRR-of-WWWWW.safetensors
    ├── STEM.index.json
    ├── STEM.json          documents, one file per stem
    ├── tokenizer.json     and what else belongs to a tokenizer, as it came
    └── manifest.json      format version, size and SHA-256 of every other file, aliases of shared tensors

``atomic_checkpoint`` publishes the directory (``fathom.files``): a process killed at any moment leaves the earlier
checkpoints as they were and at most one hidden temporary, which the next ``prune`` removes. Nothing is pickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fathom.checkpoint.damaged import damaged
from fathom.checkpoint.sharded.index import index_name, stem_files, stem_of
from fathom.checkpoint.sharded.tensors import LazyTensors, ShardedTensors, StoredTensors
from fathom.checkpoint.tensorfile import TensorFile
from fathom.checkpoint.writer import FORMAT, NEWEST, CheckpointWriter
from fathom.checkpoint.writer import MANIFEST as MANIFEST
from fathom.errors import CheckpointError
from fathom.files import file_sha256, publish_directory, read_text, remove_directory, remove_leftovers, write_json

CHECKPOINTS = "checkpoints"
"""Where the step of a run keeps its checkpoints."""
_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LARGEST_DOCUMENT = 64 * 2**20
_NUMBERED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*-(\d+)")


def save(
    directory: Path,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    documents: Mapping[str, Any],
    files: Iterable[Path] = (),
) -> Path:
    """Publish a checkpoint at ``directory`` and return it; one already there is replaced.

    Args:
        directory: where the checkpoint appears; its parents are made.
        tensors: file stem -> name -> tensor, on any device, of any strides. Tensors that are the same memory are
            written once; views that merely overlap are written out each.
        documents: file stem -> a JSON value.
        files: further files that are copied into it under their own names.

    Raises:
        ResourceError: the disk is full or refuses; the temporary is removed and what was published before stays.
        CheckpointError: a stem is not a plain file name, or a document is no JSON value.
    """
    check_stems((*tensors, *documents), directory)
    with atomic_checkpoint(directory) as draft:
        for stem, document in documents.items():
            draft.document(stem, document)
        for stem, named in tensors.items():
            draft.tensors(stem, named)
        for path in files:
            draft.copy(path)
    return directory


def check_stems(stems: Iterable[str], directory: Path) -> None:
    """Raise ``CheckpointError`` where a stem cannot be part of a file's name, or is one that the store needs."""
    for stem in stems:
        if not _STEM.fullmatch(stem) or stem == Path(MANIFEST).stem or stem.endswith(".index"):
            raise CheckpointError(f"{directory}: file stem {stem!r} cannot be used; use letters, digits, - _ and .")


@contextmanager
def atomic_checkpoint(directory: Path) -> Iterator[CheckpointWriter]:
    """Yield a writer whose checkpoint is published at ``directory`` when the block succeeds, replacing one there.

    Raises:
        ResourceError: the disk is full or refuses; the temporary is removed and what was published before stays.
    """
    with publish_directory(directory, replace=True) as temporary:
        draft = CheckpointWriter(temporary)
        yield draft
        draft.write_manifest()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose files were checked when it was opened."""

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

    def tensors(self, stem: str, *, device: str = "cpu") -> Mapping[str, Tensor]:
        """Return the tensors of a stem by name; names that were one memory are one tensor again.

        Those of a sharded one are assembled when they are asked for, each time anew, and none is held.
        """
        aliases = self.aliases(stem)
        found: Mapping[str, Tensor]
        if self._is_sharded(stem):
            found = LazyTensors(self.stored(stem), aliases, device)
        else:
            path = self._path(f"{stem}.safetensors")
            try:
                found = load_file(path, device=device)
            except (OSError, SafetensorError) as error:
                raise damaged(path, f"cannot be read ({error})") from error
        absent = next((original for original in aliases.values() if original not in found), None)
        if absent is not None:
            raise damaged(self.directory / MANIFEST, f"has aliases of no tensor ({absent!r})")
        return (
            found if isinstance(found, LazyTensors) else {**found, **{name: found[of] for name, of in aliases.items()}}
        )

    def stored(self, stem: str) -> StoredTensors:
        """Return the tensors of a stem whose headers were read, to be read one by one; aliases are not among them.

        Raises:
            CheckpointError: there are none, or a header or the index is damaged.
        """
        if self._is_sharded(stem):
            return ShardedTensors.open(self._path(index_name(stem)), self.manifest["files"])
        return TensorFile.open(self._path(f"{stem}.safetensors"))

    def tensor_files(self, stem: str) -> list[str]:
        """Return the names of all files that hold the tensors of a stem; none where there are no such tensors."""
        return stem_files(self.manifest["files"], stem)

    def stems(self) -> set[str]:
        """Return the stems of all tensors."""
        return {stem for name in self.manifest["files"] if (stem := stem_of(name)) is not None}

    def document(self, stem: str) -> Any:
        """Return what ``STEM.json`` holds."""
        path = self._path(f"{stem}.json")
        try:
            return json.loads(read_text(path, _LARGEST_DOCUMENT))
        except (OSError, ValueError, RecursionError) as error:
            raise damaged(path, f"cannot be read ({error})") from error

    def verify(self, name: str, stop: Callable[[], bool] = lambda: False) -> None:
        """Compare one file with its checksum; ``CheckpointError`` where it differs. ``stop`` ends it early."""
        path = self._path(name)
        try:
            found = file_sha256(path, stop)
        except OSError as error:
            raise damaged(path, f"cannot be read ({error})") from error
        if not stop() and found != self.manifest["files"][name]["sha256"]:
            raise damaged(path, "has the wrong SHA-256")

    def sha256(self, name: str) -> str:
        """Return the checksum that a file has according to the manifest."""
        self._path(name)
        return str(self.manifest["files"][name]["sha256"])

    def aliases(self, stem: str) -> Mapping[str, str]:
        """Return which names of a stem's tensors stand for others."""
        found: Mapping[str, str] = self.manifest.get("aliases", {}).get(f"{stem}.safetensors", {})
        return found

    def _is_sharded(self, stem: str) -> bool:
        return index_name(stem) in self.manifest["files"]

    def _path(self, name: str) -> Path:
        if name not in self.manifest["files"]:
            known = ", ".join(sorted(self.manifest["files"]))
            raise CheckpointError(f"{self.directory}: holds no {name}; it holds {known}")
        return self.directory / name


def step_directory(root: Path, step: int) -> Path:
    """Where the checkpoint taken after ``step`` steps lives: ``root/step-00000042``."""
    return root / f"step-{step:08d}"


def list_checkpoints(root: Path) -> list[Path]:
    """Finished checkpoints directly below ``root``, by rising number at the end of their names."""
    if not root.is_dir():
        return []
    numbered = [(int(match[1]), path) for path in root.iterdir() if (match := _NUMBERED.fullmatch(path.name))]
    return [path for _, path in sorted(numbered) if (path / MANIFEST).is_file()]


def latest(root: Path) -> Path | None:
    """The finished checkpoint of the highest number below ``root``; unfinished ones do not count."""
    found = list_checkpoints(root)
    return found[-1] if found else None


def prune(root: Path, keep: int) -> None:
    """Remove all but the ``keep`` latest checkpoints below ``root``, and what killed processes left unfinished.

    A checkpoint is renamed before its files are removed, so that none is ever seen half removed.
    Only the process that saves into ``root`` may prune it.
    """
    if keep < 1:
        raise ValueError(f"keep must be 1 or more, got {keep}")
    for path in list_checkpoints(root)[:-keep]:
        with suppress(OSError):
            remove_directory(path)
    remove_leftovers(root)


def drop_tensors(directory: Path, stem: str) -> None:
    """Take the tensors of a stem out of a checkpoint, if they are there.

    The manifest is replaced before the files go: a process killed in between leaves a checkpoint that is complete
    without them.

    Raises:
        CheckpointError: there is no checkpoint, or its manifest is damaged.
        ResourceError: the disk refuses; the checkpoint is as it was.
    """
    manifest = _read_manifest(directory)
    names = stem_files(manifest["files"], stem)
    if names:
        manifest["files"] = {name: entry for name, entry in manifest["files"].items() if name not in names}
        manifest.get("aliases", {}).pop(f"{stem}.safetensors", None)
        write_json(directory / MANIFEST, manifest)
    for name in stem_files((path.name for path in directory.iterdir()), stem):
        with suppress(OSError):
            (directory / name).unlink(missing_ok=True)


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint; check the path")
    if not path.is_file():
        raise CheckpointError(f"{directory}: is no finished checkpoint, {MANIFEST} is missing; use another checkpoint")
    try:
        manifest = json.loads(read_text(path, _LARGEST_DOCUMENT))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"cannot be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is not a {FORMAT} manifest; check the path")
    version = manifest.get("version")
    if not isinstance(version, int) or version > NEWEST:
        raise CheckpointError(f"{path}: format version {version}, this Fathom reads up to {NEWEST}; upgrade fathom-lm")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_STEM.fullmatch(name) for name in files):
        raise damaged(path, "lists no files, or files outside its directory")
    if not all(isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys() for entry in files.values()):
        raise damaged(path, "has no size or SHA-256 of a file")
    aliases = manifest.get("aliases", {})
    if not isinstance(aliases, dict) or not all(isinstance(names, dict) for names in aliases.values()):
        raise damaged(path, "has aliases that are no table")
    if not all(isinstance(original, str) for names in aliases.values() for original in names.values()):
        raise damaged(path, "has aliases that are no names")
    return manifest


def _check_file(path: Path, entry: Mapping[str, Any], verify: bool) -> None:
    if not path.is_file():
        raise damaged(path, "is missing")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise damaged(path, f"has {size} bytes instead of {entry['bytes']}")
    if verify and file_sha256(path) != entry["sha256"]:
        raise damaged(path, "has the wrong SHA-256")
