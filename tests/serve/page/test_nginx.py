"""A server behind nginx with the configurations of deploy/: one removes the path, with TLS, the other keeps it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

from fathom.serve.api_keys import ApiKey
from fathom.serve.http.page_files import page_files
from fathom.serve.settings import LOOPBACK_NETWORKS
from tests.serve.serving import Running, Serve, wait_until

pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

from playwright.sync_api import expect

from tests.serve.page.pages import ask, watched

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
DEPLOY = Path(__file__).parents[3] / "deploy"
KEY, LIMITED = "a-key-of-some-length", "a-limited-key-of-some-length"
CONFIGURATIONS = ["nginx/fathom.conf", "compose/nginx.conf"]


@contextlib.contextmanager
def proxied(root: Path, configuration: str, server: Running) -> Iterator[str]:
    """Run nginx before a server; yield the address of ``/fathom``."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None:
        pytest.skip("needs nginx")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = (DEPLOY / configuration).read_text()
    tls = "ssl" in text
    text = re.sub(r"listen \d+", f"listen 127.0.0.1:{port}", text)
    text = re.sub(r"server (127\.0\.0\.1|fathom):8000;", f"server 127.0.0.1:{server.port};", text)
    text = text.replace("/etc/ssl/private/", f"{root}/").replace("/etc/ssl/", f"{root}/")
    if tls:
        command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=models.example.org"
        files = ["-keyout", "models.example.org.key", "-out", "models.example.org.pem"]
        subprocess.run([*command.split(), *files], cwd=root, check=True, capture_output=True)
    (root / "site.conf").write_text(text)
    user = "user root;" if os.name == "posix" and os.geteuid() == 0 else ""
    temporary = " ".join(
        f"{kind}_temp_path {root}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (root / "nginx.conf").write_text(
        f"{user} daemon off; pid {root}/pid; error_log {root}/error.log; worker_processes 1; events {{}}\n"
        f"http {{ access_log off; {temporary} include {root}/site.conf; }}\n"
    )
    process = subprocess.Popen([nginx, "-p", str(root), "-c", str(root / "nginx.conf"), "-e", str(root / "error.log")])
    try:
        assert wait_until(lambda: _listens(port)), (root / "error.log").read_text()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}/fathom"
    finally:
        process.terminate()
        process.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def _client(url: str, key: str) -> httpx2.Client:
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.Client(base_url=url, headers=headers, timeout=60, verify=unverified, trust_env=False)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_everything_passes_through_nginx(
    serve: Serve, browser: Browser, tmp_path: Path, configuration: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = (KEY, ApiKey(name="limited", key=LIMITED, requests_per_minute=1))
    served = serve(root_path="/fathom", api_keys=keys, trusted_proxies=LOOPBACK_NETWORKS, allowed_hosts=("127.0.0.1",))
    with caplog.at_level(logging.INFO, logger="fathom.serve"), served as server:
        with proxied(tmp_path, configuration, server) as url:
            with _client(url, KEY) as http:
                _check_page_and_errors(http, url)
                _check_streams(http, server)
                http.get("/v1/models", headers={"x-forwarded-for": "6.6.6.6"})
            with _client(url, LIMITED) as http:
                _check_limits(http)
            with watched(browser, f"{url}/", expected="401", ignore_https_errors=True) as page:
                page.fill("#key", KEY)
                page.press("#key", "Enter")
                ask(page, "The river finds the road")
                expect(page.locator(".answer")).to_contain_text("first token")
        assert server.idle()
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "fathom.serve.access"]
    assert {line["client"] for line in lines} == {"127.0.0.1"}
    assert {line.get("key") for line in lines} == {None, "key-1", "limited"}


def _check_page_and_errors(http: httpx2.Client, url: str) -> None:
    redirect = http.get(url)
    assert redirect.status_code == 308
    assert redirect.headers["location"].endswith("/fathom/")
    assert b"<title>Fathom</title>" in http.get(f"{url}/").content
    for name in page_files():
        assert http.get(f"{url}/page/{name}").status_code == 200
    assert http.get(f"{url}/openapi.json").json()["servers"] == [{"url": "/fathom"}]
    kind = {"content-type": "application/json"}
    refused = http.post(f"{url}/v1/completions", content=b" " * (33 << 20), headers=kind)
    assert refused.status_code == 413
    whole = b'{"prompt": "a", "max_tokens": 1, "user": "' + b"a" * (31 << 20) + b'"}'
    most = http.post(f"{url}/v1/completions", content=whole, headers=kind)
    assert most.headers["x-request-id"]  # the largest body that the server takes reaches it


def _check_streams(http: httpx2.Client, server: Running) -> None:
    """The first token comes while others are generated, and a client that leaves ends its request."""
    body = {"prompt": "The river", "max_tokens": 480, "ignore_eos": True, "stream": True}
    with http.stream("POST", "v1/completions", json=body) as answer:
        first = next(answer.iter_lines())
        assert first.startswith("data: ")
        assert server.service.metrics.in_progress == 1
    assert server.idle()
    with http.stream("POST", "v1/completions", json=body | {"max_tokens": 20}) as answer:
        events = [line for line in answer.iter_lines() if line]
    assert events[-1] == "data: [DONE]"


def _check_limits(http: httpx2.Client) -> None:
    answers = [http.post("v1/completions", json={"prompt": "a", "max_tokens": 1}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert int(answers[1].headers["retry-after"]) > 1
    assert answers[1].headers["x-ratelimit-limit-requests"] == "1"
