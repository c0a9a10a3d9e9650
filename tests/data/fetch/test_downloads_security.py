"""Downloads from a real server on this machine: only the promised bytes arrive, whatever an index or network does."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fathom.data.fetch import fetch, fetch_all
from fathom.errors import SourceError
from tests.data.fetch.conftest import CONTENT, WHEEL, pinned, settings
from tests.package_index import Index
from tests.recording_progress import RecordingProgress, Update

PAGE = "/simple/tinytexts/"
FILE = f"/files/{WHEEL}"


def refused(index: Index, cache: Path, **fields: object) -> str:
    """Return the error of a fetch that leaves nothing behind."""
    with pytest.raises(SourceError) as caught:
        fetch(pinned(), cache, settings=settings(index.simple, **fields))
    assert not cache.exists() or list(cache.iterdir()) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", ["json", "html"])
def test_the_one_file_of_the_right_hash_is_downloaded(index: Index, form, tmp_path: Path) -> None:
    index.form = form
    index.files = {
        "tinytexts-0.9-py3-none-any.whl": b"older",
        "tinytexts-1.0.tar.gz": b"source",
        "other-1.0.tar.gz": CONTENT,
        WHEEL: CONTENT,
    }
    progress = RecordingProgress()
    archive = fetch(pinned(), tmp_path / "cache", progress, settings=settings(index.simple))
    assert (archive.name, archive.read_bytes()) == (WHEEL, CONTENT)
    assert index.downloads() == [WHEEL]
    assert [(update.done, update.total) for update in progress.updates][:1] == [(0, len(CONTENT))]
    assert (progress.updates[-1].done, progress.updates[-1].total) == (len(CONTENT), len(CONTENT))
    assert progress.messages == []


@pytest.mark.parametrize("form", ["json", "html"])
def test_files_without_a_listed_hash_are_tried_and_the_wrong_ones_removed(index: Index, form, tmp_path: Path) -> None:
    index.form = form
    index.files = {"tinytexts-1.0.tar.gz": b"source", WHEEL: CONTENT}
    index.digests = dict.fromkeys(index.files)
    archive = fetch(pinned(), tmp_path / "cache", settings=settings(index.simple))
    assert [path.name for path in archive.parent.iterdir()] == [WHEEL]
    index.files = {f"tinytexts-1.0-{build}-py3-none-any.whl": b"x" for build in range(1, 50)}
    index.digests = dict.fromkeys(index.files)
    index.asked.clear()
    assert "does not have the SHA-256" in refused(index, tmp_path / "none")
    assert len(index.downloads()) == 8


def test_a_wrong_hash_is_refused_without_a_download(index: Index, tmp_path: Path) -> None:
    index.files = {WHEEL: b"another"}
    assert "does not have the SHA-256 of the manifest; correct sha256" in refused(index, tmp_path / "cache")
    assert index.downloads() == []


def test_a_file_that_is_not_what_its_index_lists_is_refused(index: Index, other: Index, tmp_path: Path) -> None:
    index.files = {WHEEL: b"x" * len(CONTENT)}
    index.digests = {WHEEL: pinned().sha256}
    assert f"{WHEEL} is not what its index lists; use another index" in refused(index, tmp_path / "cache")
    archive = fetch(pinned(), tmp_path / "cache", settings=settings(index.simple, other.simple))
    assert archive.read_bytes() == CONTENT


def test_a_file_larger_than_listed_is_cut_off(index: Index, tmp_path: Path) -> None:
    index.sizes = {WHEEL: 1000}
    assert "is larger than its index says" in refused(index, tmp_path / "cache")
    index.sizes = {WHEEL: 1 << 40}
    assert "above 8589934592; use a smaller package" in refused(index, tmp_path / "cache")
    assert index.downloads() == [WHEEL, WHEEL]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_body_that_is_cut_is_continued_or_started_anew(index: Index, ranges: bool, tmp_path: Path) -> None:
    index.ranges = ranges
    index.cuts = {FILE: [300_000, 200_000]}
    archive = fetch(pinned(), tmp_path / "cache", settings=settings(index.simple))
    assert archive.read_bytes() == CONTENT
    asked = [headers.get("Range") for headers in index.headers[1:]]
    assert asked[:2] == [None, "bytes=300000-"]
    assert asked[2] == ("bytes=500000-" if ranges else "bytes=200000-")


def test_faults_that_pass_are_tried_again_and_others_are_not(index: Index, tmp_path: Path) -> None:
    index.faults = {PAGE: [503, 429], FILE: [500, 502]}
    assert fetch(pinned(), tmp_path / "cache", settings=settings(index.simple)).read_bytes() == CONTENT
    index.faults = {PAGE: [503] * 9}
    index.asked.clear()
    assert "status 503 (Service Unavailable); run again later" in refused(index, tmp_path / "none")
    assert len(index.asked) == 3
    index.faults = {PAGE: [], FILE: [404]}
    index.asked.clear()
    assert "is answered with status 404 (Not Found)" in refused(index, tmp_path / "none")
    assert len(index.asked) == 2


def test_a_server_that_is_silent_or_sends_drops_is_left(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.slow_seconds = 0.3
    began = time.monotonic()
    assert "does not answer (timed out)" in refused(index, tmp_path / "cache", timeout=0.1, retries=0)
    monkeypatch.setattr("fathom.data.fetch.download._SLOW_SECONDS", 0.2)
    monkeypatch.setattr("fathom.data.fetch.download._SLOW_BYTES", len(CONTENT))
    assert "sends less than 1048576 bytes in 0.2 s" in refused(index, tmp_path / "cache", retries=0)
    assert time.monotonic() - began < 60


def test_redirections_are_followed_to_web_addresses_only_and_not_for_ever(
    index: Index, other: Index, tmp_path: Path
) -> None:
    index.redirects = {PAGE: f"{other.url}{PAGE}", "/files/loop": "/files/loop"}
    assert fetch(pinned(), tmp_path / "cache", settings=settings(index.simple)).read_bytes() == CONTENT
    assert other.downloads() == [WHEEL]
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/x", "http://[", "gopher://x", "http://h:99999/"):
        index.redirects = {PAGE: target}
        assert "address" in refused(index, tmp_path / "none")
    index.redirects = {PAGE: PAGE}
    assert "redirects more than 10 times" in refused(index, tmp_path / "none")


@pytest.mark.parametrize(
    "address", ["file:///etc/hostname", "ftp://127.0.0.1/a.whl", "javascript:alert(1)", "//[", "data:,x", "/\n\r/x"]
)
@pytest.mark.parametrize("form", ["json", "html"])
def test_a_page_of_the_web_names_files_of_the_web_only(index: Index, form, address: str, tmp_path: Path) -> None:
    index.form, index.urls = form, {WHEEL: address}
    assert refused(index, tmp_path / "cache")
    assert index.downloads() == []


@pytest.mark.parametrize(
    "name",
    [
        "../tinytexts-1.0-py3-none-any.whl",
        "..\\tinytexts-1.0-py3-none-any.whl",
        "/tmp/tinytexts-1.0-py3-none-any.whl",
        "tinytexts-1.0-py3-none-any.whl\n",
        "tinytexts-1.0-py3-none-any/../x.whl",
        ".tinytexts-1.0.tar.gz",
        "tinytexts-1.0-py3-none-any:stream.whl",
        "tinytexts-1.0-" + "x" * 300 + "-none-any.whl",
        "tinytextſ-1.0-py3-none-any.whl",
        "tinytexts-1.0.exe",
        "tinytexts-1.0.zip/",
        "tinytexts-.zip",
    ],
)
def test_file_names_that_are_none_are_passed_over(index: Index, name: str, tmp_path: Path) -> None:
    index.files = {name: CONTENT}
    index.urls = {name: "/files/x"}
    assert "was not found" in refused(index, tmp_path / "cache")
    assert index.downloads() == []


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"files": [1]}',
        b'{"files": [{"filename": 1, "url": 2}]}',
        b'{"meta": {"api-version": "2.0"}, "files": []}',
        b'{"files": {"a": 1}}',
        b"\xff\xfe\x00",
        b'{"files": [{"filename": "tinytexts-1.0.zip", "url": "http://[", "hashes": [], "size": -1}]}',
    ],
)
def test_pages_that_are_none_are_named(index: Index, page: bytes, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Index, "page", lambda self: ("application/vnd.pypi.simple.v1+json", page))
    assert "is no page that lists packages (PEP 503 or 691)" in refused(index, tmp_path / "cache")


def test_a_page_without_end_is_cut_off(index: Index, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("fathom.data.fetch.listing.MAX_PAGE_BYTES", 10_000)
    monkeypatch.setattr(Index, "page", lambda self: ("text/html", b"<a href=x>" * 5000))
    assert "lists more than 10000 bytes" in refused(index, tmp_path / "cache")


def test_a_withdrawn_release_is_fetched_with_a_word(index: Index, tmp_path: Path) -> None:
    for form, reason in (("json", "broken \x1b[31m\x07\nbuild"), ("html", "broken build")):
        index.form, index.yanked, progress = form, {WHEEL: reason}, RecordingProgress()
        fetch(pinned(), tmp_path / form, progress, settings=settings(index.simple))
        (message,) = progress.messages
        assert message.startswith("tinytexts: tinytexts==1.0 was withdrawn by its publisher (broken")
        assert message.isprintable()


def test_an_sdist_is_bytes_and_its_setup_never_runs(index: Index, tmp_path: Path) -> None:
    proof = tmp_path / "it-ran"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in ("setup.py", "pyproject.toml", "PKG-INFO"):
            content = f"open({str(proof)!r}, 'w')\n".encode()
            info = tarfile.TarInfo(f"tinytexts-1.0/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    index.files = {"tinytexts-1.0.tar.gz": packed.getvalue()}
    archive_path = fetch(pinned(packed.getvalue()), tmp_path / "cache", settings=settings(index.simple))
    assert archive_path.read_bytes() == packed.getvalue()
    assert not proof.exists()


def test_modules_of_the_working_directory_are_not_imported(index: Index, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    proof = tmp_path / "it-ran"
    for name in ("pip", "json", "netrc", "ssl", "packaging", "configparser", "certifi", "setuptools"):
        (folder / f"{name}.py").write_text(f"open({str(proof)!r}, 'a').write({name!r})\nraise SystemExit(3)\n")
    manifest = tmp_path / "program.py"
    manifest.write_text(
        "import sys\nfrom pathlib import Path\nfrom fathom.data.fetch import fetch\nfrom fathom.spec.package import "
        "PinnedPackage\n"
        f"pin = PinnedPackage(package='tinytexts', version='1.0', sha256={pinned().sha256!r}, licence='MIT')\n"
        f"print(fetch(pin, Path({str(tmp_path / 'cache')!r})))\n"
    )
    environment = {**os.environ, "PIP_INDEX_URL": index.simple, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(manifest)], cwd=folder, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.strip().endswith(WHEEL), done.stderr
    assert not proof.exists()


def test_a_compressed_answer_is_refused(index: Index, tmp_path: Path, monkeypatch) -> None:
    from tests.package_index import _Handler

    plain_send = _Handler.send
    monkeypatch.setattr(
        _Handler,
        "send",
        lambda self, status, body, headers=None, **more: plain_send(
            self, status, gzip.compress(body), {**(headers or {}), "Content-Encoding": "gzip"}
        ),
    )
    assert "is sent compressed though not asked so" in refused(index, tmp_path / "cache")


def test_a_progress_that_raises_stops_the_download_and_leaves_nothing(index: Index, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def stop(update: object) -> None:
        raise Enough

    with pytest.raises(Enough):
        fetch(pinned(), tmp_path / "cache", RecordingProgress(stop), settings=settings(index.simple))
    assert list((tmp_path / "cache").iterdir()) == []


def test_several_that_fetch_the_same_at_once_all_have_it(index: Index, tmp_path: Path) -> None:
    index.slow_seconds = 0.01
    chosen = settings(index.simple)
    with ThreadPoolExecutor(6) as pool:
        archives = list(pool.map(lambda _: fetch(pinned(), tmp_path / "cache", settings=chosen), range(6)))
    assert {archive.read_bytes() for archive in archives} == {CONTENT}
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [WHEEL]


def test_one_that_fails_ends_the_downloads_beside_it(index: Index, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def stop_once(update: Update) -> None:
        if len(progress.updates) == 1:
            raise Enough

    progress = RecordingProgress(stop_once)
    index.files = {WHEEL: CONTENT * 8, "tinytexts-1.0.zip": CONTENT * 7}
    index.slow_seconds = 0.2  # for an eighth of a body
    both = [pinned(content) for content in index.files.values()]
    with pytest.raises(Enough):
        fetch_all(both, tmp_path / "cache", progress, settings=settings(index.simple))
    assert max(update.done for update in progress.updates) < len(CONTENT) * 7
    assert list((tmp_path / "cache").iterdir()) == []


def test_indexes_and_pages_of_this_machine_work_without_a_network(tmp_path: Path) -> None:
    files = tmp_path / "mirror" / "files"
    page = tmp_path / "mirror" / "simple" / "tinytexts" / "index.html"
    files.mkdir(parents=True)
    page.parent.mkdir(parents=True)
    (files / WHEEL).write_bytes(CONTENT)
    page.write_text(f'<base href="./"><a href="../../files/{WHEEL}#sha256={pinned().sha256}">x</a>')
    simple = tmp_path / "mirror" / "simple"
    for number, chosen in enumerate(
        (
            settings(simple.as_uri()),
            settings(str(simple)),
            settings(find_links=(str(files),)),
            settings(find_links=(files.as_uri(),)),
            settings(find_links=(page.as_uri(),)),
            settings("https://127.0.0.1:9/simple", simple.as_uri(), retries=0),
        )
    ):
        assert fetch(pinned(), tmp_path / f"cache{number}", settings=chosen).read_bytes() == CONTENT
    with pytest.raises(SourceError, match=r"was not found; .*\(asked: file:///"):
        fetch(pinned(package="absent"), tmp_path / "none", settings=settings(simple.as_uri()))
    with pytest.raises(SourceError, match="there is no such folder; correct pip's index settings"):
        fetch(pinned(), tmp_path / "none", settings=settings(find_links=(str(tmp_path / "absent"),)))
    with pytest.raises(SourceError, match="is a file of another machine"):
        fetch(pinned(), tmp_path / "none", settings=settings("file://elsewhere/simple"))


def test_what_is_no_ordinary_file_is_not_opened(tmp_path: Path) -> None:
    make = getattr(os, "mkfifo", os.mkdir)  # a pipe would wait for ever
    make(tmp_path / WHEEL)
    with pytest.raises(SourceError, match="is no ordinary file"):
        fetch(pinned(), tmp_path / "cache", settings=settings(find_links=(str(tmp_path),)))


def test_json_without_hashes_or_sizes_is_read(index: Index, tmp_path: Path, monkeypatch) -> None:
    page = json.dumps({"files": [{"filename": WHEEL, "url": f"{index.url}{FILE}", "hashes": {"md5": "x"}}]}).encode()
    monkeypatch.setattr(Index, "page", lambda self: ("application/json", page))
    assert fetch(pinned(), tmp_path / "cache", settings=settings(index.simple)).read_bytes() == CONTENT
