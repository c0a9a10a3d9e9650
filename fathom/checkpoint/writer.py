"""Writing a Fathom checkpoint: files are hashed as they grow."""

from __future__ import annotations

import hashlib
import queue
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from fathom.checkpoint.sharded.index import index_name
from fathom.checkpoint.tensorfile import Entry, TensorFileWriter
from fathom.errors import CheckpointError
from fathom.files import file_sha256, json_text

FORMAT = "fathom-checkpoint"
VERSION = 2
NEWEST = 3
"""Version of a checkpoint with sharded tensors."""
MANIFEST = "manifest.json"
_BLOCK = 1 << 18


class CheckpointWriter:
    """Writes the files of a checkpoint into ``folder``; ``write_manifest`` lists them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, dict[str, Any]] = {}
        self._aliases: dict[str, dict[str, str]] = {}
        self._version = VERSION

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """Size and SHA-256 of what was written, by name."""
        return self._files

    def document(self, stem: str, content: Any) -> None:
        """Write ``STEM.json``; ``CheckpointError`` where it is no JSON value."""
        path = self.folder / f"{stem}.json"
        path.write_text(_json(path, content), encoding="utf-8")
        self.add_file(path.name)

    def add_file(self, name: str) -> None:
        """List a file that was written into the folder."""
        path = self.folder / name
        self._files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}

    def copy(self, path: Path) -> None:
        """Take a file over under its own name."""
        shutil.copyfile(path, self.folder / path.name)
        self.add_file(path.name)

    def tensors(self, stem: str, named: Mapping[str, Tensor]) -> None:
        """Write ``STEM.safetensors``; tensors that are the same memory are written once."""
        distinct, self._aliases[f"{stem}.safetensors"] = without_sharing(named)
        entries = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in distinct.items()]
        self.stream(stem, entries, distinct.items())

    def stream(
        self,
        stem: str,
        entries: Sequence[Entry],
        tensors: Iterable[tuple[str, Tensor]],
        on_write: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Write ``STEM.safetensors`` from tensors as they come, in the order of ``entries``.

        The checksum is taken on another thread from what is written already, so that no tensor is held for it.
        ``on_write`` is called with the bytes of each tensor.
        """
        path = self.folder / f"{stem}.safetensors"
        with _hashing(path) as hasher:
            with TensorFileWriter(path, entries) as writer:
                for name, tensor in tensors:
                    count = writer.write(name, tensor)
                    del tensor
                    hasher.advance(writer.final_bytes)
                    on_write(count)
            size = path.stat().st_size
            hasher.advance(size)
            self._files[path.name] = {"bytes": size, "sha256": hasher.result()}

    def sharded(
        self, stem: str, index: str, aliases: Mapping[str, str], files: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Write the index of tensors that ranks wrote in pieces, and list their files with their sizes and SHA-256."""
        name = index_name(stem)
        (self.folder / name).write_text(index, encoding="utf-8")
        self.add_file(name)
        self._files |= {piece: dict(entry) for piece, entry in files.items()}
        self._aliases[f"{stem}.safetensors"] = dict(aliases)
        self._version = NEWEST

    def write_manifest(self) -> None:
        """Write the manifest."""
        manifest: dict[str, Any] = {"format": FORMAT, "version": self._version, "files": self._files}
        manifest["aliases"] = {name: same for name, same in self._aliases.items() if same}
        path = self.folder / MANIFEST
        path.write_text(_json(path, manifest), encoding="utf-8")


class StreamingHasher:
    """Hashes a growing file on a thread of its own, up to where its bytes will not change any more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marks: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._digest = hashlib.sha256()
        self._error: OSError | None = None
        self._abandoned = False
        self._thread = threading.Thread(target=self._work, name="checksum", daemon=True)
        self._thread.start()

    def advance(self, size: int) -> None:
        """Say that the first ``size`` bytes are final."""
        self._marks.put(size)

    def result(self) -> str:
        """Wait and return the SHA-256 of all bytes announced, as hexadecimal digits."""
        self._marks.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._digest.hexdigest()

    def close(self) -> None:
        """End the thread, whatever is left to hash."""
        self._abandoned = True
        self._marks.put(None)
        self._thread.join()

    def _work(self) -> None:
        place, block = 0, memoryview(bytearray(_BLOCK))
        while (size := self._marks.get()) is not None:
            try:
                with self._path.open("rb", buffering=0) as file:
                    file.seek(place)
                    while place < size and not self._abandoned:
                        count = file.readinto(block[: size - place])
                        if not count:
                            raise OSError(f"{self._path.name} became shorter while it was written")
                        self._digest.update(block[:count])
                        place += count
            except OSError as error:
                self._error = error
                return


@contextmanager
def _hashing(path: Path) -> Iterator[StreamingHasher]:
    hasher = StreamingHasher(path)
    try:
        yield hasher
    finally:
        hasher.close()


def without_sharing(named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return distinct tensors and aliases of equal ones; views that merely overlap are kept."""
    distinct: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in named.items():
        identity = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and identity in first:
            aliases[name] = first[identity]
            continue
        first[identity] = name
        distinct[name] = tensor
    return distinct, aliases


def _json(path: Path, document: Any) -> str:
    try:
        return json_text(document, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name}: cannot be written as JSON ({error}); keep to plain values") from error
