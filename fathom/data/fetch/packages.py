"""Packages in a cache keyed by hash, one or several at once."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from fathom.cache import cache_directory
from fathom.data.fetch.download import Package, download
from fathom.data.fetch.settings import IndexSettings, read_settings
from fathom.errors import FathomError, SourceError
from fathom.files import file_sha256, publish_directory
from fathom.progress import NO_METRICS, NULL_PROGRESS, NullProgress, Progress
from fathom.spec.package import check_pin


def fetch(
    source: Package,
    cache_dir: Path | None = None,
    progress: Progress = NULL_PROGRESS,
    *,
    settings: IndexSettings | None = None,
) -> Path:
    """Return the archive of a source, downloading it unless the cache holds it.

    The archive lies at ``cache_dir/SHA256/FILENAME`` and appears there only when its hash is right; it is never
    built, unpacked to disk or run. A cached archive is hashed again at every call; a damaged one is fetched anew.
    ``settings`` are pip's own unless given.

    Raises:
        SpecError: the name, version or hash is none.
        SourceError: a wrong hash, no network, no such release, or no access.
        ResourceError: a full disk. Nothing partial stays behind.
    """
    check_pin(source.package, source.version, source.sha256)
    home = (cache_directory() if cache_dir is None else cache_dir).expanduser() / source.sha256
    existed = home.exists()
    cached = _cached(home, source)
    if cached is None:
        try:
            with publish_directory(home, replace=existed) as temporary:
                download(source, temporary, settings or read_settings(), progress)
        except FathomError:
            if _cached(home, source) is None:  # another process may have published the same file meanwhile
                raise
        cached = _only_file(home)
    if cached is None:
        raise SourceError(f"{home}: vanished while in use; run again")
    progress.update(cached.stat().st_size, cached.stat().st_size, "bytes", phase="fetch")
    return cached


def fetch_all(
    sources: Sequence[Package],
    cache_dir: Path | None = None,
    progress: Progress = NULL_PROGRESS,
    *,
    workers: int = 4,
    settings: IndexSettings | None = None,
) -> dict[str, Path]:
    """Fetch several sources at once; returns archives by source name. The first failure stops the rest."""
    unique = {source.sha256: source for source in sources}
    shared = _SharedProgress(progress, len(unique))
    with ThreadPoolExecutor(max_workers=workers) as pool:
        running = {
            pool.submit(fetch, source, cache_dir, shared.part(sha), settings=settings): sha
            for sha, source in unique.items()
        }
        archives: dict[str, Path] = {}
        try:
            for future in as_completed(running):
                archives[running[future]] = future.result()
        except BaseException:
            shared.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return {source.name: archives[source.sha256] for source in sources}


class _Stopped(Exception):
    """Another download failed."""


class _SharedProgress:
    """Adds up the bytes of downloads that run at once, and ends them all where one fails."""

    def __init__(self, progress: Progress, count: int) -> None:
        self._progress, self._count = progress, count
        self._parts: dict[str, tuple[float, float | None]] = {}
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def part(self, name: str) -> Progress:
        """Return what one download reports to."""
        return _Part(self, name)

    def stop(self) -> None:
        """Let every download that still runs end at its next report."""
        self._stopped.set()

    def message(self, text: str) -> None:
        with self._lock:
            self._progress.message(text)

    def update(self, name: str, done: float, total: float | None) -> None:
        with self._lock:
            if self._stopped.is_set():
                raise _Stopped
            self._parts[name] = (done, total)
            totals = [known for _, known in self._parts.values() if known is not None]
            complete = len(totals) == self._count
            summed = sum(done for done, _ in self._parts.values())
            self._progress.update(summed, sum(totals) if complete else None, "bytes", phase="fetch")


class _Part(NullProgress):
    def __init__(self, shared: _SharedProgress, name: str) -> None:
        self._shared, self._name = shared, name

    def update(
        self, done: float, total: float | None, unit: str, *, phase: str = "", metrics: Mapping[str, str] = NO_METRICS
    ) -> None:
        self._shared.update(self._name, done, total)

    def message(self, text: str) -> None:
        self._shared.message(text)


def _cached(home: Path, source: Package) -> Path | None:
    file = _only_file(home)
    return file if file is not None and file_sha256(file) == source.sha256 else None


def _only_file(directory: Path) -> Path | None:
    files = [path for path in directory.iterdir() if path.is_file()] if directory.is_dir() else []
    return files[0] if len(files) == 1 else None
