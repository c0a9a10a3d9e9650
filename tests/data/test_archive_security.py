"""Archives of strangers end in our error, in bounded memory: bombs of every kind, absurd headers, damage anywhere."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fathom.data.archive import read_members
from fathom.data.archive.selection import MAX_MEMBERS
from fathom.data.records.compressed import ReadLimits
from fathom.errors import FathomError, ResourceError, SourceError
from tests.slow_cases import fast

MIB = 1 << 20
LIMITS = ReadLimits(max_ratio=100, ratio_after_bytes=4 * MIB)


def header(name: str | bytes = "a.txt", size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return one block of a tar archive, of any size and kind, sound or not."""
    info = tarfile.TarInfo("x")
    info.type = kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[:100] = (name if isinstance(name, bytes) else name.encode())[:100].ljust(100, b"\0")
    block[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 512)


def pax(records: bytes, kind: bytes = tarfile.XHDTYPE, size: int | None = None) -> bytes:
    return header("pax", len(records) if size is None else size, kind) + padded(records)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(str(length)) + len(key) + len(value) + 3 != length:
        length = len(str(length)) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


@contextmanager
def at_most(peak_bytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < peak_bytes
    finally:
        tracemalloc.stop()


def refused(path: Path, patterns: tuple[str, ...] = ("*",), **options: object) -> str:
    with at_most(64 * MIB), pytest.raises(SourceError) as caught:
        for _ in read_members(path, patterns, **options):  # type: ignore[arg-type]
            pass
    assert len(str(caught.value)) < 3000
    return str(caught.value)


END = b"\0" * 1024
GOOD = header(size=1) + padded(b"a")
TARS: dict[str, tuple[bytes, str]] = {
    "a pax header of gigabytes": (pax(b"", size=1 << 33), "header of a member has over 16384 bytes"),
    "a global pax header of gigabytes": (pax(b"", tarfile.XGLTYPE, 1 << 33), "header of a member has over 16384 bytes"),
    "a long name of gigabytes": (header("x", 1 << 33, tarfile.GNUTYPE_LONGNAME), "has over 16384 bytes"),
    "a long link of gigabytes": (header("x", 1 << 33, tarfile.GNUTYPE_LONGLINK), "has over 16384 bytes"),
    "pax headers one after another": (pax(record(b"a", b"b")) * 3000, "has over 16384 bytes"),
    "long names one after another": (
        (header("x", 8, tarfile.GNUTYPE_LONGNAME) + padded(b"abcdefg\0")) * 3000,
        "has over 16384 bytes",
    ),
    "digits without end": (pax(b"1" * 12_000), "a number of hundreds of digits"),
    "a name of thousands of characters": (
        pax(record(b"path", b"x" * 5000)) + header(size=0),
        "a path inside has 5000 characters",
    ),
    "a size below zero": (header(size=-1), "damaged archive"),
    "a size below zero that leads back": (GOOD + header(size=-1024) + GOOD, "damaged archive"),
    "a size below zero in a pax header": (pax(record(b"size", b"-2048")) + header(size=0), "damaged archive"),
    "a member that is cut": (header(size=4000) + b"x" * 100, "damaged archive"),
    "a size of exabytes": (header(size=1 << 60), "has 1152921504606846976 bytes, above"),
    "an old map of holes": (header("a.txt", 512, tarfile.GNUTYPE_SPARSE) + padded(b"a"), "a file with holes"),
    "a pax map of holes": (
        pax(record(b"GNU.sparse.map", b"0,1,5000000,1") + record(b"GNU.sparse.size", b"9000000"))
        + header(size=2)
        + padded(b"ab"),
        "a file with holes",
    ),
    "a map of holes of nonsense": (
        pax(record(b"GNU.sparse.map", b"a,b,-1") + record(b"GNU.sparse.size", b"-5")) + header(size=2) + padded(b"ab"),
        "",
    ),
    "a map of holes inside": (
        pax(record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0"))
        + header(size=512)
        + padded(b"9" * 99),
        "damaged archive",
    ),
    "nothing": (b"", "damaged archive"),
    "no archive": (b"hello" * 1000, "damaged archive"),
}


@pytest.mark.parametrize("case", TARS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress], ids=["plain", "gz", "bz2", "xz"])
def test_absurd_headers_of_tar_are_refused(case: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    content, message = TARS[case]
    (tmp_path / "a.tar").write_bytes(pack(content + END if content else content))
    assert message in refused(tmp_path / "a.tar")


def test_many_members_and_many_headers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fathom.data.archive.selection.MAX_MEMBERS", 500)
    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(b"".join(header(f"{n}.txt") for n in range(501)) + END))
    assert "has over 500 members" in refused(path)
    shared = b"".join(pax(record(b"k%d" % n, b"v" * 900), tarfile.XGLTYPE) + header(f"{n}") for n in range(500))
    path.write_bytes(gzip.compress(shared + END))
    with at_most(4 * MIB):
        assert len(list(read_members(path, ["*"]))) == 500
    monkeypatch.setattr("fathom.data.archive.tar.MAX_EXTENDED_BYTES", MIB // 8)
    assert "the header of a member" in refused(path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gz", "bz2", "xz"])
@pytest.mark.parametrize("pattern", ["*", "*.py"])
def test_bombs_in_tar_are_refused_whether_or_not_they_are_chosen(pack, pattern: str, tmp_path: Path) -> None:
    size = 16 * MIB
    (tmp_path / "a").write_bytes(pack(header("a.txt", size) + bytes(size) + header("b.py", 1) + padded(b"1") + END))
    assert "unpacks to over 100 times its size" in refused(tmp_path / "a", (pattern,), limits=LIMITS)


def test_what_is_kept_of_a_tar_is_bounded_by_what_is_read_at_once(tmp_path: Path) -> None:
    block = random.Random(1).randbytes(MIB)
    (tmp_path / "a").write_bytes(b"".join(header(f"{n}.txt", MIB) + block for n in range(160)) + END)
    with at_most(96 * MIB):
        assert sum(len(content) for _, content in read_members(tmp_path / "a", ["*"])) == 160 * MIB


def test_a_full_disk_while_unpacking_is_a_resource_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import tempfile

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", lambda size: Full())
    (tmp_path / "a").write_bytes(GOOD + END)
    with pytest.raises(ResourceError, match="not unpacked, the disk is full"):
        list(read_members(tmp_path / "a", ["*"]))


def zip_of(count: int, name: str = "{}.txt") -> bytes:
    """Return a zip archive of empty members, made by hand: Python's own writer takes long over millions."""
    local, central, offset = io.BytesIO(), io.BytesIO(), 0
    for number in range(count):
        encoded = name.format(number).encode()
        part = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, len(encoded), 0) + encoded
        local.write(part)
        fields = (20, 20, 0, 0, 0, 0, 0, 0, 0, len(encoded), 0, 0, 0, 0, 0, offset)
        central.write(struct.pack("<4s6H3L5H2L", b"PK\1\2", *fields) + encoded)
        offset += len(part)
    directory = central.getvalue()
    shown = min(count, 65_535)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, shown, shown, len(directory), offset, 0)
    return local.getvalue() + directory + end


def test_zips_of_very_many_members_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(zip_of(300_000, "{:016}"))
    assert "its directory has over 16777216 bytes" in refused(path)
    path.write_bytes(zip_of(100, "x" * 2000 + "{}"))
    assert "a path inside has 200" in refused(path)
    path.write_bytes(zip_of(300))
    assert len(list(read_members(path, ["*"]))) == 300


def test_members_that_share_their_bytes_are_a_bomb(tmp_path: Path) -> None:
    kernel = zipfile.ZipFile(tmp_path / "kernel.zip", "w", zipfile.ZIP_DEFLATED)
    with kernel:
        kernel.writestr("0.txt", bytes(3 * MIB))
    raw = (tmp_path / "kernel.zip").read_bytes()
    start = raw.index(b"PK\1\2")
    end = raw.index(b"PK\5\6")
    central = raw[start:end]
    many = b"".join(central.replace(b"0.txt", b"%05d" % n) for n in range(2000))
    tail = bytearray(raw[end:])
    tail[8:12] = struct.pack("<2H", 2000, 2000)
    tail[12:16] = struct.pack("<L", len(many))
    (tmp_path / "a.zip").write_bytes(raw[:start] + many + tail)
    assert "unpacks to over 100 times its size" in refused(tmp_path / "a.zip", limits=LIMITS)


def test_a_zip_that_says_less_than_it_holds_is_cut_off(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", bytes(32 * MIB))
    raw = (tmp_path / "a.zip").read_bytes().replace(struct.pack("<L", 32 * MIB), struct.pack("<L", 10))
    (tmp_path / "a.zip").write_bytes(raw)
    assert "damaged archive" in refused(tmp_path / "a.zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_that_no_package_uses_are_refused(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("a.txt", b"a" * 1000)
    assert f"packed by method {method}" in refused(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", b"a" * 1000)
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(raw)
    assert "is encrypted" in refused(tmp_path / "a.zip")


def test_links_in_zips_are_passed_over(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("b.txt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("a.txt", "a")
    assert list(read_members(tmp_path / "a.zip", ["*.txt"])) == [("a.txt", b"a")]


def small(kind: str) -> bytes:
    packed = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("a.txt", "b/c.txt", "d.py"):
                archive.writestr(zipfile.ZipInfo(name), name * 30, zipfile.ZIP_DEFLATED)
    else:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name in ("a.txt", "b/" + "ü" * 80 + ".txt", "d.py"):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = 90, 1.5
                tar.addfile(info, io.BytesIO(name.encode()[:1] * 90))
    return packed.getvalue()


SMALL = {"zip": small("zip"), "tar": small("tar")[:6144]}


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(SMALL)),
    edits=st.lists(st.tuples(st.integers(0, 6143), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4),
    cut=st.none() | st.integers(0, 6144),
    packed=st.booleans(),
)
def test_damage_anywhere_ends_in_our_errors(kind: str, edits, cut: int | None, packed: bool, tmp_path: Path) -> None:
    content = bytearray(SMALL[kind])
    for at, data in edits:
        at %= len(content)
        content[at : at + len(data)] = data
    damaged = bytes(content[:cut])
    path = tmp_path / "a"
    messages: list[str] = []
    path.write_bytes(gzip.compress(damaged, 1) if packed and kind == "tar" else damaged)
    try:
        for name, read in read_members(path, ["*"], max_bytes=MIB, limits=LIMITS):
            assert len(name) < 2000
            assert len(read) <= MIB
    except FathomError as error:
        messages.append(str(error))
    assert not any("\n" in message for message in messages)


PROGRAM = """
import resource, sys
from pathlib import Path
from fathom.data.archive import read_members
from fathom.errors import SourceError

def peak_kib():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    # Linux's ru_maxrss begins with the largest of the process that started this one
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak_kib()
try:
    list(read_members(Path(sys.argv[1]), ["*"]))
except SourceError as error:
    print(peak_kib() - before, error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no module resource")
@pytest.mark.parametrize("members", fast([MAX_MEMBERS + 1, 10_000_000], [10_000_000]))
def test_a_zip_of_absurdly_many_members_takes_bounded_memory(members: int, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    if members < 1_000_000:
        path.write_bytes(zip_of(members, "{:x}"))
    else:
        size = 47 * members  # a hole: the library would read it whole before it looks at it
        with path.open("wb") as file:
            file.truncate(size)
            file.seek(size)
            file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65_535, 65_535, size, 0, 0))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250)
    grown, message = done.stdout.split(" ", 1)
    assert "over" in message, done.stderr
    assert int(grown) < 256 * 1024
