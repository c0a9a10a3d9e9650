"""Getting the one file of a release that has the right SHA-256: found, streamed to disk, hashed on the way."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from fathom.data.fetch.addresses import shown
from fathom.data.fetch.listing import ListedFile, Place, Release, listed_files
from fathom.data.fetch.settings import IndexSettings
from fathom.data.fetch.transport import Answer, Transport, TransportError, attempt
from fathom.errors import ResourceError, SourceError, shortened
from fathom.progress import Progress

MAX_ARCHIVE_BYTES = 8_589_934_592
MAX_UNLISTED = 8
"""How many files of a release are tried whose SHA-256 no index lists."""
_CHUNK = 262_144
_REPORT_BYTES = 1_048_576
_SLOW_SECONDS = 60.0
_SLOW_BYTES = 65_536
_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class Package(Protocol):
    """A pinned package to fetch, with its name for messages: a source of text, a model, a set of tasks."""

    @property
    def name(self) -> str:
        """What it is for."""
        ...

    @property
    def package(self) -> str:
        """The name it is published under, in canonical form."""
        ...

    @property
    def version(self) -> str:
        """The one version."""
        ...

    @property
    def sha256(self) -> str:
        """Of the archive."""
        ...


def download(source: Package, directory: Path, settings: IndexSettings, progress: Progress) -> None:
    """Put the archive of a source into ``directory``, under the name it is published by.

    Places of this machine are looked at first, then pages and indexes in the order of ``settings``; a file is
    downloaded only if the SHA-256 that is listed is the right one, or none is listed.

    Raises:
        SourceError: it is not to be had; the message says why.
        ResourceError: it does not fit on the disk.
        OSError: it cannot be written.
    """
    _Search(source, directory, settings, progress).run()


class _Search:
    def __init__(self, source: Package, directory: Path, settings: IndexSettings, progress: Progress) -> None:
        self._source, self._directory, self._settings, self._progress = source, directory, settings, progress
        self._pinned = f"{source.name}: {source.package}=={source.version}"
        self._release = Release(source.package, source.version)
        self._transport = Transport(settings)
        self._failures: list[TransportError] = []
        self._other_files = False

    def run(self) -> None:
        unlisted: list[ListedFile] = []
        places = _places(self._settings)
        for place in places:
            for file in self._files(place):
                if file.sha256 == self._source.sha256:
                    if self._take(file):
                        return
                elif file.sha256 is None:
                    unlisted.append(file)
                else:
                    self._other_files = True
        unlisted.sort(key=lambda file: not isinstance(file.address, Path))
        if any(self._take(file) for file in unlisted[:MAX_UNLISTED]):
            return
        raise self._failure(places)

    def _files(self, place: Place) -> list[ListedFile]:
        try:
            return attempt(lambda: listed_files(place, self._release, self._transport), self._settings.retries)
        except TransportError as error:
            self._failures.append(error)
            return []

    def _take(self, file: ListedFile) -> bool:
        """Download a file; False where it cannot be had or is not the right one, with nothing left of it."""
        path = self._directory / file.filename
        try:
            with path.open("wb") as target:
                writer = _Writer(target, file, self._progress)
                if isinstance(file.address, Path):
                    _copy(file.address, writer)
                else:
                    address = file.address
                    attempt(lambda: _receive(address, self._transport, writer), self._settings.retries)
            if writer.hexdigest() == self._source.sha256:
                self._report_yanked(file)
                return True
            if file.sha256 is None:
                self._other_files = True
            else:
                self._failures.append(TransportError(f"{file.filename} is not what its index lists; use another index"))
        except TransportError as error:
            self._failures.append(error)
        path.unlink()
        return False

    def _report_yanked(self, file: ListedFile) -> None:
        if file.yanked is not None:
            reason = f" ({shortened(file.yanked, 200)})" if file.yanked.strip() else ""
            self._progress.message(f"{self._pinned} was withdrawn by its publisher{reason}; choose another version")

    def _failure(self, places: list[Place]) -> SourceError:
        wrong = f"{self._pinned} does not have the SHA-256 of the manifest"
        if self._other_files and not self._failures:
            return SourceError(f"{wrong}; correct sha256, or do not use this package")
        if self._failures:
            lacking = f"{wrong} where it was found, and" if self._other_files else self._pinned
            return SourceError(f"{lacking} could not be downloaded: {self._failures[0]}")
        asked = ", ".join(shown(place.address) for place in places) or "no index, as pip is configured"
        return SourceError(
            f"{self._pinned} was not found; check the network, the package's name and version, then run again "
            f"(asked: {asked})"
        )


class _Writer:
    """Writes and hashes what arrives, within the size that was promised, and reports how much it is."""

    def __init__(self, target: BinaryIO, file: ListedFile, progress: Progress) -> None:
        self.name, self.written, self.total = file.filename, 0, file.size
        self._target, self._listed, self._progress = target, file.size, progress
        self._found, self._reported = hashlib.sha256(), 0

    def expect(self, total: int | None) -> None:
        """Take note of the size that the server tells."""
        self.total = self._listed if self._listed is not None else total
        most = MAX_ARCHIVE_BYTES if self.total is None else self.total
        if most > MAX_ARCHIVE_BYTES:
            raise TransportError(f"{self.name} has {most} bytes, above {MAX_ARCHIVE_BYTES}; use a smaller package")
        free = shutil.disk_usage(Path(self._target.name).parent).free
        if self.total is not None and self.total - self.written > free:
            raise ResourceError(
                f"{self.name}: does not fit on the disk, {self.total} bytes of which {free} are free; "
                "free some space, then run again"
            )
        self._progress.update(self.written, self.total, "bytes", phase="fetch")

    def restart(self) -> None:
        """Forget what was written."""
        self._target.seek(0)
        self._target.truncate()
        self.written, self._reported, self._found = 0, 0, hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Add bytes; too many of them raise ``TransportError``."""
        self.written += len(data)
        if self.written > (MAX_ARCHIVE_BYTES if self.total is None else self.total):
            raise TransportError(f"{self.name} is larger than its index says; use another index")
        self._found.update(data)
        self._target.write(data)
        if self.written - self._reported >= _REPORT_BYTES:
            self._reported = self.written
            self._progress.update(self.written, self.total, "bytes", phase="fetch")

    def hexdigest(self) -> str:
        """Return the SHA-256 of all that was written."""
        return self._found.hexdigest()


def _places(settings: IndexSettings) -> list[Place]:
    places = [Place(address, False) for address in settings.find_links]
    places += [Place(address, True) for address in settings.indexes]
    return sorted(dict.fromkeys(places), key=lambda place: not place.is_local)


def _copy(path: Path, writer: _Writer) -> None:
    try:
        if not path.is_file():
            raise TransportError(f"{path}: is no ordinary file; correct pip's index settings")
        with path.open("rb") as file:
            writer.expect(path.stat().st_size)
            _pass_on(lambda: file.read(_CHUNK), writer)
    except (PermissionError, FileNotFoundError) as error:
        raise TransportError(f"{path}: cannot be read ({error.strerror}); correct pip's index settings") from None


def _pass_on(read: Callable[[], bytes], writer: _Writer) -> None:
    while data := read():
        writer.write(data)


def _receive(address: str, transport: Transport, writer: _Writer) -> None:
    """Read a file's body, from where an attempt before was cut if the server can."""
    headers = {"Accept": "*/*"} | ({"Range": f"bytes={writer.written}-"} if writer.written else {})
    with transport.open(address, headers) as answer:
        start = _RANGE.fullmatch(answer.header("Content-Range").strip()) if answer.response.status == 206 else None
        if start is None or int(start.group(1)) != writer.written:
            if answer.response.status == 206:
                writer.restart()
                raise TransportError(f"{shown(address)} is sent in parts not asked for; run again", transient=True)
            writer.restart()
        length = answer.header("Content-Length")
        known = writer.written + int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None
        writer.expect(known)
        _read_steadily(answer, writer)
    if known is not None and writer.written < known:
        raise TransportError(f"{shown(address)} ended too early; check the network and run again", transient=True)


def _read_steadily(answer: Answer, writer: _Writer) -> None:
    """Pass the body on; a body that comes in drops raises ``TransportError``."""
    since, written = time.monotonic(), writer.written
    while data := answer.read(_CHUNK):
        writer.write(data)
        if time.monotonic() - since > _SLOW_SECONDS:
            if writer.written - written < _SLOW_BYTES:
                raise TransportError(
                    f"{shown(answer.url)} sends less than {_SLOW_BYTES} bytes in {_SLOW_SECONDS:g} s; "
                    "check the network and run again",
                    transient=True,
                )
            since, written = time.monotonic(), writer.written
