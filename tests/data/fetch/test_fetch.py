from __future__ import annotations

import dataclasses
import errno
import shutil
from pathlib import Path

import pytest

from fathom.data.fetch import IndexSettings, fetch, fetch_all
from fathom.errors import ResourceError, SourceError
from tests.recording_progress import RecordingProgress, Update


def leftovers(cache: Path) -> list[Path]:
    return list(cache.rglob("*")) if cache.exists() else []


def test_a_package_is_fetched_by_hash_then_served_from_the_cache_unless_damaged(make_package, tmp_path: Path) -> None:
    source, settings = make_package({"a.txt": "hello"})
    cache = tmp_path / "cache"
    progress = RecordingProgress()
    archive = fetch(source, cache, progress, settings=settings)
    assert archive == cache / source.sha256 / "tinytexts-1.0-py3-none-any.whl"
    assert leftovers(cache) == [cache / source.sha256, archive]
    size = archive.stat().st_size
    assert progress.updates == [Update(0, size, "bytes", "fetch"), Update(size, size, "bytes", "fetch")]
    good = archive.read_bytes()
    archive.write_bytes(good[:-1])
    assert fetch(source, cache, settings=settings).read_bytes() == good
    (tmp_path / "registry" / archive.name).unlink()
    assert fetch(source, cache, settings=settings) == archive


def test_a_wrong_hash_is_refused_and_leaves_nothing(make_package, tmp_path: Path) -> None:
    source, settings = make_package({"a.txt": "hello"})
    wrong = dataclasses.replace(source, sha256="0" * 64)
    with pytest.raises(SourceError, match="does not have the SHA-256 of the manifest") as caught:
        fetch(wrong, tmp_path / "cache", settings=settings)
    assert "\n" not in str(caught.value)
    assert leftovers(tmp_path / "cache") == []


def test_an_unreachable_registry_and_an_unknown_release_are_named(make_package, tmp_path: Path) -> None:
    source, settings = make_package({"a.txt": "hello"})
    with pytest.raises(SourceError, match=r"tinytexts==9\.9 was not found; check the network"):
        fetch(dataclasses.replace(source, version="9.9"), tmp_path / "cache", settings=settings)
    nowhere = IndexSettings(indexes=("http://127.0.0.1:9/simple",), retries=0, timeout=1)
    with pytest.raises(SourceError, match="check the network") as caught:
        fetch(source, tmp_path / "cache", settings=nowhere)
    assert "\n" not in str(caught.value)
    assert leftovers(tmp_path / "cache") == []


def test_several_sources_are_fetched_together_and_a_shared_package_once(make_package, tmp_path: Path) -> None:
    first, settings = make_package({"a.txt": "one"}, "firstpack")
    second, _ = make_package({"a.txt": "two"}, "secondpack")
    twin = dataclasses.replace(first, name="twin")
    progress = RecordingProgress()
    archives = fetch_all(
        [first, second, twin],
        tmp_path / "cache",
        progress,
        settings=settings,
    )
    assert set(archives) == {"firstpack", "secondpack", "twin"}
    assert archives["twin"] == archives["firstpack"]
    size = sum(path.stat().st_size for path in set(archives.values()))
    assert (progress.updates[-1].done, progress.updates[-1].total) == (size, size)
    with pytest.raises(SourceError, match="secondpack"):
        fetch_all([first, dataclasses.replace(second, sha256="1" * 64)], tmp_path / "cache", settings=settings)


def test_a_disk_that_fills_while_downloading_is_a_resource_error(
    make_package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, settings = make_package({"a.txt": "hello"})
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
        with pytest.raises(ResourceError, match=r"does not fit on the disk, .* of which 10 are free; free some space"):
            fetch(source, tmp_path / "cache", settings=settings)

    def full(self: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fathom.data.fetch.download._Writer.write", full)
    with pytest.raises(ResourceError, match="the disk is full; free disk space"):
        fetch(source, tmp_path / "cache", settings=settings)
    assert leftovers(tmp_path / "cache") == []


def test_a_package_for_another_python_is_fetched_all_the_same(make_package, tmp_path: Path) -> None:
    source, settings = make_package({"a.txt": "hello"}, python=">=3.99")
    assert fetch(source, tmp_path / "cache", settings=settings).is_file()
