"""What every request passes: hosts, paths, methods, keys and origins."""

from __future__ import annotations

import pytest

from fathom.serve.http.middleware import _without_port, canonical, loopback_hosts
from tests.serve.serving import Running, Serve, raw


@pytest.mark.parametrize(
    ("host", "more", "expected"),
    [
        ("127.0.0.1", [], {"localhost", "127.0.0.1", "[::1]"}),
        ("::1", ["a.example"], {"localhost", "127.0.0.1", "[::1]", "a.example"}),
        ("0.0.0.0", [], set()),
        ("0.0.0.0", ["a.example"], {"localhost", "127.0.0.1", "[::1]", "0.0.0.0", "a.example"}),
    ],
)
def test_the_hosts_answered_to_follow_from_where_it_listens(host: str, more: list[str], expected: set[str]) -> None:
    assert set(loopback_hosts(host, more)) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/v1/models/", "/v1/models"),
        ("//v1//chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/v1/models", "/v1/models"),
        ("/v1", "/v1"),
        ("/v1/models/org/name", "/v1/models/org/name"),
    ],
)
def test_paths_as_base_urls_make_them_are_read(path: str, expected: str) -> None:
    assert canonical({"path": path, "method": "GET"})["path"] == expected


def test_head_is_answered_as_get_without_a_body(server: Running) -> None:
    with server.http() as http:
        for path in ("/health", "/ready", "/v1/models", "/v1/models/tiny", "/metrics", "/openapi.json", "/"):
            whole, head = http.get(path), http.head(path)
            assert head.status_code == whole.status_code == 200, path
            assert head.content == b""
            assert head.headers["content-type"] == whole.headers["content-type"]
        assert http.head("/nowhere").status_code == 404
        refused = http.head("/v1/completions")
        assert (refused.status_code, refused.content) == (405, b"")
        assert http.get("/health").json() == {"status": "ok"}  # the connection is in order


def test_head_on_a_connection_that_is_kept_needs_no_body(server: Running) -> None:
    lines = [
        "HEAD /health HTTP/1.1",
        "Host: a",
        "",
        "HEAD /v1/models/ HTTP/1.1",
        "Host: a",
        "Connection: close",
        "",
        "",
    ]
    answers = raw(server.port, "\r\n".join(lines).encode())
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert answers.endswith(b"\r\n\r\n")


def test_options_say_which_methods_a_route_has(server: Running) -> None:
    with server.http() as http:
        answer = http.request("OPTIONS", "/v1/chat/completions")
        assert (answer.status_code, answer.headers["allow"], answer.content) == (204, "POST", b"")
        assert http.request("OPTIONS", "/nowhere").status_code == 404


def test_keys_are_read_from_the_headers_of_every_official_client(serve: Serve) -> None:
    key = "a-key-of-some-length"
    with serve(api_keys=(key,)) as server, server.http() as http:
        for name, value in (("authorization", f"Bearer {key}"), ("x-api-key", key), ("api-key", key)):
            assert http.get("/v1/models", headers={name: value}).status_code == 200
            assert http.get("/v1/models", headers={name: f"{value}x"}).status_code == 401
        both = {"x-api-key": key, "authorization": "Bearer wrong"}
        assert http.get("/v1/models", headers=both).status_code == 200
        assert "x-api-key: KEY" in http.get("/v1/models").json()["error"]["message"]


OPENAI_JS = (
    "authorization,content-type,openai-organization,openai-project,x-stainless-arch,x-stainless-async,"
    "x-stainless-helper-method,x-stainless-lang,x-stainless-os,x-stainless-package-version,x-stainless-retry-count,"
    "x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout"
)
ANTHROPIC_JS = (
    "anthropic-beta,anthropic-dangerous-direct-browser-access,anthropic-version,content-type,x-api-key,"
    "x-stainless-lang,x-stainless-timeout"
)


@pytest.mark.parametrize("headers", [OPENAI_JS, ANTHROPIC_JS])
def test_the_preflight_of_the_official_javascript_clients_passes(serve: Serve, headers: str) -> None:
    origin = "https://page.example"
    with serve(cors_origins=(origin,), api_keys=("a-key-of-some-length",)) as server, server.http() as http:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": headers}
        preflight = http.request("OPTIONS", "/v1/chat/completions", headers={"origin": origin} | asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == origin
        assert set(headers.split(",")) <= set(preflight.headers["access-control-allow-headers"].split(","))
        assert "POST" in preflight.headers["access-control-allow-methods"]
        answer = http.get("/v1/models", headers={"origin": origin, "authorization": "Bearer a-key-of-some-length"})
        assert answer.headers["access-control-allow-origin"] == origin
        exposed = answer.headers["access-control-expose-headers"]
        assert "x-fathom-ignored-fields" in exposed
        assert "x-request-id" in exposed


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost", "localhost"),
        ("localhost:8000", "localhost"),
        ("localhost:", "localhost"),
        ("[::1]", "[::1]"),
        ("[::1]:8000", "[::1]"),
        ("", ""),
        *(
            (bad, bad)
            for bad in ("[::1]evil.org", "localhost:80@evil.org", "127.0.0.1:80:80", "[::1", "::1", "[x]:1", "a:b")
        ),
    ],
)
def test_security_a_host_header_is_read_whole(host: str, name: str) -> None:
    assert _without_port(host) == name
