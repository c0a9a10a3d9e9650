"""A server below a path of a reverse proxy, which removes that path or does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import SpecError
from fathom.serve.http.middleware import canonical
from fathom.serve.root_path import OWN_SEGMENTS, check_root_path
from tests.serve.serving import Running, Serve

ROOT = "/team/fathom"
KEY = "a-key-of-some-length"


@pytest.fixture(scope="module")
def below(serve: Serve) -> Iterator[Running]:
    """Return a server below ``ROOT`` that asks for a key."""
    with serve(root_path=ROOT, api_keys=(KEY,), cors_origins=("https://page.example",)) as found:
        yield found


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/health", "/v1/models", "/v1/models/tiny", "/nowhere", "/v1"])
def test_each_path_is_answered_alike_with_the_root_path_and_without(below: Running, path: str) -> None:
    for headers in ({}, {"authorization": f"Bearer {KEY}"}):
        with below.http(**headers) as http:
            plain, published = http.get(path), http.get(ROOT + path)
        assert published.status_code == plain.status_code
        assert published.content == plain.content


def test_streams_errors_and_the_document_are_those_of_the_published_paths(below: Running) -> None:
    body = {"prompt": "The river", "max_tokens": 2, "stream": True}
    with below.http(authorization=f"Bearer {KEY}", origin="https://page.example") as http:
        stream = http.post(f"{ROOT}/v1/completions", json=body)
        assert stream.text.endswith("data: [DONE]\n\n")
        assert stream.headers["access-control-allow-origin"] == "https://page.example"
        refused = http.post(f"{ROOT}/v1/messages", json={})
        assert (refused.status_code, refused.json()["type"]) == (400, "error")
        assert f"see {ROOT}/openapi.json" in http.get(f"{ROOT}/nowhere").json()["error"]["message"]
        document = http.get(f"{ROOT}/openapi.json").json()
    assert document["servers"] == [{"url": ROOT}]
    assert "/v1/models" in document["paths"]


def test_the_page_is_reached_without_the_last_slash_and_without_a_key(below: Running) -> None:
    with below.http() as http:
        answer = http.get(ROOT)
        assert (answer.status_code, answer.headers["location"]) == (308, f"{ROOT}/")
        assert b"<title>Fathom</title>" in http.get(answer.headers["location"]).content


def test_first_segments_of_all_routes_are_known(server: Running) -> None:
    with server.http() as http:
        documented = http.get("/openapi.json").json()["paths"]
    page = {"page", "favicon.ico", "openapi.json"}
    assert {path.split("/")[1] for path in documented} | page == OWN_SEGMENTS


segments = st.lists(st.text("abzAZ09._~-", min_size=1, max_size=8), min_size=1, max_size=3)


@given(segments=segments, rest=st.sampled_from(["/", "/v1/models", "/v1/v1/models/", "//v1//models"]))
def test_a_path_that_is_accepted_is_removed_once(segments: list[str], rest: str) -> None:
    root = "/" + "/".join(segments)
    try:
        check_root_path(root)
    except SpecError:
        assert {".", ".."} & set(segments) or segments[0] in OWN_SEGMENTS
        return
    published = canonical({"path": root + rest, "method": "GET"}, root)
    assert published == canonical({"path": rest, "method": "GET"}, root)


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            "fathom",
            "/",
            "/fathom/",
            "//fathom",
            "/a//b",
            "/a b",
            "/a?b",
            "/a#b",
            "/a%20b",
            "/ä",
            "/a/../b",
            "/.",
            "/a\n",
        ),
        *("http://host/fathom", "/{name}", "/" + "a" * 200, "/v1", "/page/a", "/metrics"),
    ],
)
def test_other_paths_are_refused(wrong: str) -> None:
    with pytest.raises(SpecError, match=r"root_path: .*such as /fathom"):
        check_root_path(wrong)
