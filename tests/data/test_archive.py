from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from fathom.data.archive import read_members
from fathom.data.records.compressed import ReadLimits
from fathom.errors import SourceError

FILES = {"top/b/two.txt": b"two", "top/one.txt": b"one", "top/skip.txt": b"no", "top/code.py": b"pass"}


def make_tar(path: Path, files: dict[str, bytes], link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return path


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_matching_files_come_sorted_and_excluded_ones_do_not(make, tmp_path: Path) -> None:
    archive = make(tmp_path / "a", FILES)
    found = list(read_members(archive, ["*.txt"], ["*/skip*"]))
    assert found == [("top/b/two.txt", b"two"), ("top/one.txt", b"one")]


@pytest.mark.parametrize("make", [make_tar, make_zip])
@pytest.mark.parametrize("name", ["/etc/x.txt", "../x.txt", "a/../../x.txt", "C:\\x.txt"])
def test_a_path_that_leaves_the_archive_is_refused(make, name: str, tmp_path: Path) -> None:
    archive = make(tmp_path / "a", {"ok.txt": b"", name: b"evil"})
    with pytest.raises(SourceError, match="unsafe path"):
        list(read_members(archive, ["ok.txt"]))


def test_links_are_not_followed(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a", {"a.txt": b"a"}, link="b.txt")
    assert list(read_members(archive, ["*.txt"])) == [("a.txt", b"a")]


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_oversized_members_unmatched_patterns_and_damage_are_named(make, tmp_path: Path) -> None:
    archive = make(tmp_path / "a", FILES | {"big.txt": b"\0" * 5000})
    with pytest.raises(SourceError, match=r"big\.txt' has 5000 bytes, above 4999"):
        list(read_members(archive, ["big.txt"], max_bytes=4999))
    with pytest.raises(SourceError, match=r"no file matches '\*\.csv'"):
        list(read_members(archive, ["*.txt", "*.csv"]))
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(SourceError, match="damaged archive"):
        list(read_members(archive, ["*.txt"]))


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_a_bomb_is_refused_before_it_is_unpacked(make, tmp_path: Path) -> None:
    limits = ReadLimits(max_ratio=100, ratio_after_bytes=1_000_000)
    archive = make(tmp_path / "a", {f"{n}.txt": b"\0" * 500_000 for n in range(20)})
    with pytest.raises(SourceError, match=r"a: unpacks to over 100 times its size \(max_ratio\)"):
        list(read_members(archive, ["*.txt"], limits=limits))
    assert len(list(read_members(archive, ["*.txt"]))) == 20


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_compression_of_tar_is_read(mode: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a", mode) as archive:  # type: ignore[call-overload]
        for name, content in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert dict(read_members(tmp_path / "a", ["*"])) == FILES


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        list(read_members(tmp_path / "absent", ["*"]))
