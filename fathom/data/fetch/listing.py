"""What an index or folder lists of one release: pages as PEP 691 (JSON) or PEP 503 (HTML) have them, and folders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from fathom.data.fetch.addresses import local_path, scheme_of, shown
from fathom.data.fetch.transport import Transport, TransportError

MAX_PAGE_BYTES = 33_554_432
_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_CHUNK = 65_536
_FILENAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,199}")
_SDIST = re.compile(r"\.(?:tar\.gz|tgz|tar\.bz2|tbz|tar\.xz|txz|tar|zip)\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file that a place lists: an address, or a path of this machine; what is not listed is None."""

    filename: str
    address: str | Path
    sha256: str | None = None
    size: int | None = None
    yanked: str | None = None


class Release:
    """One version of a package, and which files are named as its wheels or source archives."""

    def __init__(self, package: str, version: str) -> None:
        self.package = package
        self._version = Version(version)

    def has(self, filename: str) -> bool:
        """Whether a file's name is that of a wheel or a source archive of this release."""
        if not _FILENAME.fullmatch(filename):
            return False
        if filename.endswith(".whl"):
            parts = filename[:-4].split("-")
            return len(parts) in (5, 6) and self._is_called(parts[0], parts[1])
        ending = _SDIST.search(filename)
        if ending is None:
            return False
        stem = filename[: ending.start()]
        dashes = [place for place, character in enumerate(stem) if character == "-"]
        return any(self._is_called(stem[:dash], stem[dash + 1 :]) for dash in dashes)

    def _is_called(self, name: str, version: str) -> bool:
        if canonicalize_name(name) != self.package:
            return False
        try:
            found = Version(version)
        except InvalidVersion:
            return False
        return found == self._version or (self._version.local is None and Version(found.public) == self._version)


@dataclass(frozen=True, slots=True)
class Place:
    """Where files are listed: an index, of which a package's page is read, or what pip calls find-links."""

    address: str
    is_index: bool

    @property
    def is_local(self) -> bool:
        """Whether it is a path or a file: address."""
        return scheme_of(self.address) in ("", "file")


def listed_files(place: Place, release: Release, transport: Transport) -> list[ListedFile]:
    """Return the files of a release that a place lists; empty where it has no page of the package.

    Raises:
        TransportError: the place cannot be read.
    """
    if place.is_local:
        return _local_files(place, release)
    address = f"{place.address.rstrip('/')}/{release.package}/" if place.is_index else place.address
    try:
        with transport.open(address, {"Accept": _ACCEPT}, secure=True) as answer:
            content = bytearray()
            while chunk := answer.read(_CHUNK):
                content += chunk
                if len(content) > MAX_PAGE_BYTES:
                    raise TransportError(f"{shown(address)} lists more than {MAX_PAGE_BYTES} bytes; use another index")
            kind = answer.header("Content-Type").partition(";")[0].strip().lower()
            return _page_files(bytes(content), kind, answer.url, release)
    except TransportError as error:
        if error.status in (404, 410):
            return []
        raise


def _local_files(place: Place, release: Release) -> list[ListedFile]:
    path = _local_path(place.address)
    page = path / release.package / "index.html" if place.is_index else path
    try:
        if page.is_dir():
            return [ListedFile(entry.name, entry) for entry in sorted(page.iterdir()) if release.has(entry.name)]
        if not page.is_file():
            if path.exists():
                return []
            raise TransportError(f"{path}: there is no such folder; correct pip's index settings")
        with page.open("rb") as file:
            content = file.read(MAX_PAGE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise TransportError(f"{path}: cannot be read ({error}); correct pip's index settings") from None
    if len(content) > MAX_PAGE_BYTES:
        raise TransportError(f"{page}: lists more than {MAX_PAGE_BYTES} bytes; use another index")
    return _page_files(content, "text/html", page.absolute().as_uri(), release)


def _local_path(address: str) -> Path:
    path = local_path(address)
    if path is None:
        raise TransportError(f"{shown(address)} is a file of another machine; correct pip's index settings")
    return path


def _page_files(content: bytes, kind: str, url: str, release: Release) -> list[ListedFile]:
    try:
        if kind in (_JSON, "application/json"):
            return list(_from_json(json.loads(content), url, release))
        parser = _Anchors(url, release)
        parser.feed(content.decode(errors="replace"))
        return parser.files
    except (ValueError, RecursionError):
        raise TransportError(
            f"{shown(url)} is no page that lists packages (PEP 503 or 691); correct pip's index settings"
        ) from None


def _from_json(page: Any, url: str, release: Release) -> Iterator[ListedFile]:
    meta = page.get("meta") if isinstance(page, dict) else None
    files = page.get("files") if isinstance(page, dict) else None
    version = meta.get("api-version", "1.0") if isinstance(meta, dict) else "1.0"
    if not isinstance(files, list) or not str(version).startswith("1."):
        raise ValueError
    for entry in files:
        if not isinstance(entry, dict):
            raise ValueError
        filename, address, hashes = entry.get("filename"), entry.get("url"), entry.get("hashes")
        if not isinstance(filename, str) or not isinstance(address, str):
            raise ValueError
        if not release.has(filename):
            continue
        digest = hashes.get("sha256") if isinstance(hashes, dict) else None
        size, yanked = entry.get("size"), entry.get("yanked", False)
        listed = _listed(
            filename,
            urljoin(url, address),
            url,
            digest if isinstance(digest, str) else None,
            size if type(size) is int and size >= 0 else None,
            (yanked if isinstance(yanked, str) else "") if yanked else None,
        )
        if listed is not None:
            yield listed


def _listed(
    filename: str, address: str, page: str, sha256: str | None, size: int | None = None, yanked: str | None = None
) -> ListedFile | None:
    """Return a file of a page; None for one under an address that such a page may not name."""
    address, fragment = urldefrag(address)
    if sha256 is None and fragment.startswith("sha256="):
        sha256 = fragment.removeprefix("sha256=").partition("&")[0]
    digest = sha256.lower() if sha256 and _DIGEST.fullmatch(sha256.lower()) else None
    scheme = urlsplit(address).scheme
    if scheme == "file" and urlsplit(page).scheme == "file":
        return ListedFile(filename, _local_path(address), digest, size, yanked)
    return ListedFile(filename, address, digest, size, yanked) if scheme in ("http", "https") else None


class _Anchors(HTMLParser):
    """Collects the files that the anchors of a page name."""

    def __init__(self, url: str, release: Release) -> None:
        super().__init__(convert_charrefs=True)
        self.files: list[ListedFile] = []
        self._release = release
        self._url = self._base = url

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        href = (values.get("href") or "").strip()
        if tag == "base" and href and self._base == self._url:
            self._base = urljoin(self._url, href)
        if tag != "a" or not href:
            return
        try:
            address = urljoin(self._base, href)
            filename = unquote(urlsplit(address).path.rpartition("/")[2])
            if not self._release.has(filename):
                return
            yanked = values.get("data-yanked") or "" if "data-yanked" in values else None
            listed = _listed(filename, address, self._url, None, None, yanked)
        except (ValueError, TransportError):
            return
        if listed is not None:
            self.files.append(listed)
