"""Which Host headers a server answers to."""

from __future__ import annotations

import pytest

from fathom.serve.http.middleware import loopback_hosts


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
