"""What a package may be: archives of either kind, and the pages that list them."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import zipfile

from fathom.data.archive import read_members
from fathom.data.fetch.listing import Release, _page_files
from fathom.data.fetch.transport import TransportError
from fathom.data.records.compressed import ReadLimits
from tests.fuzz.driver import Target
from tests.fuzz.json_damage import WORDS, damage

_LIMITS = ReadLimits(max_ratio=100, ratio_after_bytes=4 << 20)
_NAMES = ("a.txt", "b/" + "天" * 40 + ".txt", "c/d.py", "e" * 120)


def _edited(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few overwritten, repeated or cut."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(content))
        piece = rng.choice(
            (rng.randbytes(rng.choice((1, 4, 8))), b"\xff" * 8, b"\0" * 8, b"9" * 11, b"\x80" + b"\0" * 11)
        )
        content[at : at + len(piece)] = piece
    if rng.random() < 0.2:
        start = 512 * rng.randrange(max(1, len(content) // 512))
        content[start:start] = content[start : start + 512] * rng.choice((1, 3, 60))
    return bytes(content[: rng.randrange(1, len(content))] if rng.random() < 0.1 else content)


class _Archives(Target):
    memory_bytes = 256 * 2**20

    def start(self) -> None:
        self.path = self.folder / "fuzzed"
        self.whole = self.sound()
        self.check(self.whole)

    def sound(self) -> bytes:
        """Return an archive that is read."""
        raise NotImplementedError

    def make(self, rng: random.Random) -> bytes:
        return _edited(self.whole, rng)

    def check(self, data: bytes) -> None:
        self.path.write_bytes(data)
        with self.tolerated():
            total = sum(len(read) for _, read in read_members(self.path, ["*"], max_bytes=1 << 20, limits=_LIMITS))
            assert total <= 8 << 20


class ZipArchives(_Archives):
    """Wheels."""

    name = "zip"
    suffix = ".zip"

    def sound(self) -> bytes:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in _NAMES:
                archive.writestr(zipfile.ZipInfo(name), name * 30, zipfile.ZIP_DEFLATED)
        return packed.getvalue()


class TarArchives(_Archives):
    """Source archives, plain or compressed, with headers of every form."""

    name = "tar"
    suffix = ".tar"

    def sound(self) -> bytes:
        packed = b""
        for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
            part = io.BytesIO()
            with tarfile.open(fileobj=part, mode="w", format=form, pax_headers={"comment": "x"}) as tar:
                for number, name in enumerate(_NAMES):
                    info = tarfile.TarInfo(name)
                    info.size, info.mtime, info.pax_headers = 600, number + 0.5, {"GNU.sparse.name": name}
                    tar.addfile(info, io.BytesIO(b"x" * 600))
            packed += part.getvalue().rstrip(b"\0").ljust(512 * -(-len(part.getvalue().rstrip(b"\0")) // 512), b"\0")
        return packed + bytes(1024)

    def make(self, rng: random.Random) -> bytes:
        data = super().make(rng)
        if rng.random() < 0.6:
            data = self._with_sums(data)
        packed = gzip.compress(data, 1, mtime=0) if rng.random() < 0.3 else data
        return _edited(packed, rng) if rng.random() < 0.05 else packed

    @staticmethod
    def _with_sums(data: bytes) -> bytes:
        """Make the checksum of every header true, so that what was changed is read."""
        content = bytearray(data)
        for at in range(0, len(content) - 511, 512):
            if content[at + 257 : at + 262] == b"ustar":
                content[at + 148 : at + 156] = b" " * 8
                content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
        return bytes(content)


class IndexPages(Target):
    """Pages of a package index, in JSON and in HTML."""

    name = "index_pages"
    suffix = ".page"
    memory_bytes = 256 * 2**20

    def start(self) -> None:
        self.release = Release("tiny-texts", "1.0")
        names = ("tiny_texts-1.0-py3-none-any.whl", "tiny-texts-1.0.tar.gz", "tiny_texts-1.0.post1.zip")
        files = [
            {"filename": name, "url": f"../../{name}", "hashes": {"sha256": "a" * 64}, "size": 3, "yanked": False}
            for name in names
        ]
        self.page = {"meta": {"api-version": "1.1"}, "name": "tiny-texts", "files": files}
        anchors = "".join(f'<a href="../{n}#sha256={"a" * 64}" data-yanked="x">{n}</a>' for n in names)
        self.html = f'<!DOCTYPE html><base href="/x/"><body>{anchors}</body>'.encode()
        self.check(b"j" + json.dumps(self.page).encode())
        self.check(b"h" + self.html)

    def make(self, rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return b"j" + json.dumps(damage(self.page, rng)).encode()
        word = rng.choice(
            (*WORDS, '"', "<", "&#x110000;", "//[", "file:///etc/passwd", "<!--", "<![CDATA[", "http://[")
        )
        at = rng.randrange(len(self.html))
        text = self.html[:at] + word.encode("utf-8", "surrogatepass") + self.html[at + rng.choice((0, 1, 9)) :]
        return b"h" + _edited(text, rng) if rng.random() < 0.3 else b"h" + text

    def check(self, data: bytes) -> None:
        kind = "application/vnd.pypi.simple.v1+json" if data[:1] == b"j" else "text/html"
        try:
            found = _page_files(data[1:], kind, "https://example.org/simple/tiny-texts/", self.release)
        except TransportError as error:
            self.refusals["TransportError"] += 1
            if not str(error).isprintable():
                raise AssertionError(f"no plain message: {error!r}") from error
            return
        for file in found:
            assert self.release.has(file.filename)
            assert "/" not in file.filename
            assert str(file.address).startswith(("http://", "https://"))


TARGETS = (ZipArchives, TarArchives, IndexPages)
