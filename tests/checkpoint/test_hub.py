"""The hub, played by a server on this machine that speaks its protocol for one tiny repository."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from fathom.checkpoint.hf import HFCheckpoint, save_hf
from fathom.checkpoint.hub import fetch_model
from fathom.errors import CheckpointError, ResourceError
from fathom.model import build
from fathom.spec import GroupedQueryAttention, ModelSpec
from tests.recording_progress import RecordingProgress, Update

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SPEC = ModelSpec(
    name="tiny",
    family="llama",
    vocab_size=20,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=1,
    attention=GroupedQueryAttention(num_heads=2, num_kv_heads=1, head_dim=4),
    max_position_embeddings=16,
)


@dataclass
class Hub:
    """What the server holds and was asked for; ``refusal`` is the status and error code it answers everything with."""

    url: str
    files: dict[str, bytes]
    refusal: tuple[int, str] | None = None
    sent: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if self.hub.refusal is not None:
            status, code = self.hub.refusal
            self.send(status, b"", {"X-Error-Code": code}, body=body)
        elif path == "/api/models/owner/tiny/revision/main":
            self.send(200, json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": []}).encode(), {}, body=body)
        elif path == f"/api/models/owner/tiny/tree/{COMMIT}":
            listing = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.hub.files.items()
            ]
            self.send(200, json.dumps(listing).encode(), {}, body=body)
        elif path.startswith(f"/owner/tiny/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/owner/tiny/resolve/{COMMIT}/")
            content = self.hub.files[name]
            if body:
                self.hub.sent.append(name)
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.send(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT}, body=body)
        else:
            self.send(404, b"", {"X-Error-Code": "RepoNotFound"}, body=body)

    def send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    published = save_hf(tmp_path / "published", SPEC, build(SPEC, seed=1).state_dict(), max_shard_bytes=2000)
    files = {path.name: path.read_bytes() for path in published.iterdir()}
    files |= {
        "pytorch_model.bin": b"a pickle",
        "training_args.pt": b"a pickle",
        "modeling_tiny.py": b"code",
        "consolidated.safetensors": b"the same again",
        "original/model.safetensors": b"the same again",
        "README.md": b"prose",
        "chat_template.jinja": b"{{ messages }}",
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.hub = Hub(f"http://127.0.0.1:{server.server_port}", files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Handler.hub
    server.shutdown()
    server.server_close()
    thread.join()


def test_weights_and_what_describes_them_are_fetched_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    progress = RecordingProgress()
    directory = fetch_model("owner/tiny", progress, cache_dir=tmp_path / "cache", endpoint=hub.url)
    wanted = {name for name in hub.files if name.startswith(("model-", "model."))} | {
        "config.json",
        "chat_template.jinja",
    }
    assert {path.name for path in directory.iterdir()} == set(hub.sent) == wanted
    source = HFCheckpoint.open(directory)
    expected = build(SPEC, seed=1).state_dict()
    assert source.spec == SPEC
    assert all(torch.equal(tensor, expected[name]) for name, tensor in source.stream())
    total = sum(len(hub.files[name]) for name in wanted)
    assert progress.updates[-1] == Update(total, total, "bytes", "download")
    done = [update.done for update in progress.updates]
    assert done == sorted(done)


def test_what_was_fetched_is_found_again_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    directory = fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url)
    count = len(hub.sent)
    assert fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url) == directory
    assert len(hub.sent) == count
    hub.refusal = (503, "")
    assert fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url) == directory


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((404, "RepoNotFound"), "is not on the hub, or is private; check the name or log in"),
        ((401, ""), "is not on the hub, or is private"),
        ((403, "GatedRepo"), "is gated; accept its terms on the hub and log in"),
        ((500, ""), r"the hub cannot be reached \(.*500 Internal Server Error.*\); check the network"),
    ],
)
def test_a_refusal_is_one_line_that_says_how_to_go_on(
    refusal: tuple[int, str], message: str, hub: Hub, tmp_path: Path
) -> None:
    hub.refusal = refusal
    with pytest.raises(CheckpointError, match=f"^owner/tiny: {message}") as caught:
        fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url)
    assert str(caught.value).endswith("or download it by other means and give its directory")
    assert "\n" not in str(caught.value)


def test_a_missing_revision_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.refusal = (404, "RevisionNotFound")
    with pytest.raises(CheckpointError, match="has no revision 'v9'; name a branch"):
        fetch_model("owner/tiny", revision="v9", cache_dir=tmp_path / "cache", endpoint=hub.url)


def test_no_network_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(CheckpointError, match=r"owner/tiny: the hub cannot be reached \(.*\); check .* directory$"):
        fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint="http://127.0.0.1:9")


def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a/b/c: is no name of the hub; write it as owner/name"):
        fetch_model("a/b/c", cache_dir=tmp_path)


def test_pickles_alone_are_no_model(hub: Hub, tmp_path: Path) -> None:
    hub.files = {name: content for name, content in hub.files.items() if not name.endswith(".safetensors")}
    with pytest.raises(CheckpointError, match="owner/tiny: publishes no safetensors, and pickled weights are never"):
        fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url)
    assert "pytorch_model.bin" not in hub.sent


def test_a_full_disk_is_a_matter_of_resources(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(ResourceError, match="not fetched, the disk is full; free disk space"):
        fetch_model("owner/tiny", cache_dir=tmp_path / "cache", endpoint=hub.url)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"needs huggingface_hub; pip install 'fathom-lm\[hub\]', or download"):
        fetch_model("owner/tiny")
