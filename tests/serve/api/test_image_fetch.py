"""Images fetched from addresses: allowed hosts only, never a private network, within limits."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fathom.serve.api import image_fetch
from fathom.serve.errors import ApiError


class Images(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/image")
            self.end_headers()
        elif self.path == "/loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.end_headers()
        elif self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://elsewhere.example/image")
            self.end_headers()
        elif self.path == "/image":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * 1000)
        else:
            self.send_error(404)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Images) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_an_image_is_never_fetched_from_a_private_network(site: str) -> None:
    for url in (
        site + "/image",
        "http://localhost/image",
        "http://[::1]/image",
        "http://10.1.2.3/a",
        "http://169.254.169.254/a",
    ):
        host = url.split("//")[1].rpartition("/")[0].partition(":")[0] if "[" not in url else "::1"
        with pytest.raises(ApiError, match="private"):
            image_fetch.fetch_image(url, "url", {host}, max_bytes=4000)


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_fetch, "is_public", lambda address: True)


@pytest.mark.usefixtures("trusting")
def test_an_image_is_fetched_within_limits_and_by_checked_redirections(site: str) -> None:
    hosts = {"127.0.0.1"}
    assert image_fetch.fetch_image(f"{site}/image", "url", hosts, max_bytes=1000) == b"x" * 1000
    assert image_fetch.fetch_image(f"{site}/moved", "url", hosts, max_bytes=1000) == b"x" * 1000
    for path, most, words in (
        ("/image", 999, "exceeds 999"),
        ("/none", 999, "status 404"),
        ("/loop", 999, "redirects more than 3 times"),
        ("/away", 999, "not allowed"),
    ):
        with pytest.raises(ApiError, match=words):
            image_fetch.fetch_image(site + path, "url", hosts, max_bytes=most)
    for url in ("ftp://127.0.0.1/a", "http://u:p@127.0.0.1/a", "http://[/a", "http://other/a"):
        with pytest.raises(ApiError, match=r"address|allowed"):
            image_fetch.fetch_image(url, "url", hosts, max_bytes=9)


@pytest.mark.usefixtures("trusting")
def test_a_host_that_does_not_respond_is_reported() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ApiError, match="cannot be fetched"):
            image_fetch.fetch_image(f"http://127.0.0.1:{unused.getsockname()[1]}/a", "url", {"127.0.0.1"}, max_bytes=9)
