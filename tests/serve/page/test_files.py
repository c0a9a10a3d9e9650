"""The page's files, and what is in them."""

from __future__ import annotations

import hashlib
import re
import urllib.error
import urllib.request
from importlib.resources import files

import pytest

from fathom.serve.http.page_files import CONTENT_SECURITY_POLICY, page_files

pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

from playwright.sync_api import Page


def fetch(address: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_files_come_with_their_type_policy_and_a_tag_that_spares_sending_them_again(url: str) -> None:
    types = {"": "text/html", "page/app.js": "text/javascript", "page/style.css": "text/css"}
    types |= {"page/favicon.svg": "image/svg+xml", "favicon.ico": "image/svg+xml"}
    for name, kind in types.items():
        status, headers, body = fetch(f"{url}/{name}")
        assert status == 200
        assert headers["content-type"].startswith(kind)
        assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert headers["cache-control"] == "no-cache"
        assert body
        again = fetch(f"{url}/{name}", **{"if-none-match": f'"other", W/{headers["etag"]}'})
        assert (again[0], again[1]["etag"], again[2]) == (304, headers["etag"], b"")
    assert fetch(f"{url}/page/page.py")[0] == 404
    assert fetch(f"{url}/page/..%2Fpage.py")[0] == 404


def test_policy_allows_nothing_from_elsewhere_and_nothing_inline() -> None:
    rules = dict(rule.split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split("; "))
    for rule in ("default-src", "form-action", "frame-ancestors", "base-uri"):
        assert rules[rule] == "'none'"
    assert (rules["script-src"], rules["style-src"], rules["connect-src"]) == ("'self'",) * 3
    index = page_files()["index.html"].body.decode()
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\son\w+=", index) == []
    known = page_files()
    own = {name: file.body for name, file in known.items() if not name.startswith("vendor/")}
    assert {link for body in own.values() for link in re.findall(rb"https?://[\w.]+", body)} <= {b"http://www.w3.org"}
    reach = rb"\b(?:XMLHttpRequest|WebSocket|EventSource|importScripts|eval|Function|import)\s*\(|(?<![.\w])fetch\s*\("
    for name in own.keys() - {"api.js", "math.js"}:  # the two that ask the server, and load what others wrote
        assert re.findall(reach, own[name]) == [], name


def test_code_of_others_is_what_its_table_says() -> None:
    folder = files("fathom.serve").joinpath("page", "vendor")
    table = folder.joinpath("README.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \|.*\| MIT, `([\w.]+)` \| `([0-9a-f]{64})` \|$", table, re.MULTILINE)
    assert {f"vendor/{name}" for name, _, _ in rows} == {name for name in page_files() if name.startswith("vendor/")}
    for name, licence, digest in rows:
        assert hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest() == digest
        assert "Permission is hereby granted" in folder.joinpath(licence).read_text()


def test_both_languages_say_the_same_things_and_all_that_is_asked_for(page: Page) -> None:
    languages = page.evaluate("async () => (await import('/page/i18n.js')).LANGUAGES")
    blanks = {
        code: {key: sorted(re.findall(r"{\w+}", text)) for key, text in said.items()}
        for code, said in languages.items()
    }
    assert blanks["en"] == blanks["zh"]
    others = ("i18n", "vendor/")
    source = "".join(file.body.decode() for name, file in page_files().items() if not name.startswith(others))
    node = r"""(?:\w+(?:\("[^"]*"(?:, \{[^}]*\})?\))?|byId\("[\w-]+"\)|this\.#\w+)"""
    named = set(re.findall(r'data-i18n(?:-\w+)?="(\w+)"', source)) | set(
        re.findall(rf'\b(?:say|name)\({node}, "(\w+)"', source)
    )
    assert len(named) > 50
    assert named <= set(languages["en"])
    kinds = {"Unauthorized", "Large", "Busy", "Unavailable", "Context", "Server", "Invalid", "Cut", "Unreachable"}
    assert {f"error{kind}" for kind in kinds} <= set(languages["en"])
