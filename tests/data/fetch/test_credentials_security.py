"""Users and passwords go to the host they belong to, and to no other, no message and no representation."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from fathom.data.fetch import IndexSettings, fetch
from fathom.data.fetch.addresses import shown
from fathom.errors import SourceError
from tests.data.fetch.conftest import CONTENT, WHEEL, pinned, settings
from tests.package_index import CERTIFICATE, Index, running_index

SECRET = "pa:s@s/w?rd#"
QUOTED = "pa%3As%40s%2Fw%3Frd%23"
PAGE = "/simple/tinytexts/"


def with_login(address: str, user: str = "me", password: str = QUOTED) -> str:
    return address.replace("://", f"://{user}:{password}@", 1)


def sent(index: Index, header: str = "Authorization") -> list[bool]:
    return [header in headers for headers in index.headers]


def test_the_login_of_an_index_reaches_its_page_and_its_files(index: Index, tmp_path: Path) -> None:
    index.login = ("me", SECRET)
    archive = fetch(pinned(), tmp_path / "cache", settings=settings(with_login(index.simple)))
    assert archive.read_bytes() == CONTENT
    assert sent(index) == [True, True]


def test_no_login_leaves_its_host_by_a_link_or_a_redirection(index: Index, other: Index, tmp_path: Path) -> None:
    index.login, index.urls = ("me", SECRET), {WHEEL: f"{other.url}/files/{WHEEL}"}
    fetch(pinned(), tmp_path / "link", settings=settings(with_login(index.simple)))
    assert (sent(index), sent(other)) == ([True], [False])
    index.urls, index.redirects = {}, {f"/files/{WHEEL}": f"{other.url}/files/{WHEEL}"}
    fetch(pinned(), tmp_path / "file", settings=settings(with_login(index.simple)))
    index.redirects = {PAGE: f"{other.url}{PAGE}"}
    fetch(pinned(), tmp_path / "page", settings=settings(with_login(index.simple)))
    assert all(sent(index))
    assert not any(sent(other))


def test_a_login_that_an_index_writes_into_a_link_is_not_sent(index: Index, other: Index, tmp_path: Path) -> None:
    index.urls = {WHEEL: with_login(f"{other.url}/files/{WHEEL}")}
    fetch(pinned(), tmp_path / "cache", settings=settings(index.simple))
    assert not any(sent(other) + sent(index))


def test_netrc_serves_the_host_it_names_and_no_other(index: Index, tmp_path: Path) -> None:
    file = tmp_path / "netrc"
    index.login = ("me", "word")
    file.write_text("machine 127.0.0.1 login me password word\ndefault login anyone password all\n")
    fetch(pinned(), tmp_path / "cache", settings=settings(index.simple, netrc=file))
    file.write_text("machine example.org login me password word\ndefault login me password word\n")
    index.headers.clear()
    with pytest.raises(SourceError, match=r"refuses access \(status 401\); correct the user and password"):
        fetch(pinned(), tmp_path / "none", settings=settings(index.simple, netrc=file))
    assert sent(index) == [False]
    file.write_text("machine what is this")
    with pytest.raises(SourceError, match="401"):
        fetch(pinned(), tmp_path / "none", settings=settings(index.simple, netrc=file))


def test_netrc_is_not_sent_in_the_open_to_a_host_that_only_a_page_names(
    index: Index, other: Index, tmp_path: Path
) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login me password word\n")
    index.urls = {WHEEL: f"{other.url}/files/{WHEEL}"}
    fetch(pinned(), tmp_path / "cache", settings=settings(index.simple, netrc=file))
    assert (sent(index), sent(other)) == ([True], [False])


def test_the_login_of_a_proxy_reaches_the_proxy_only(index: Index, other: Index, tmp_path: Path) -> None:
    other.proxy_login = ("me", SECRET)
    chosen = settings("http://127.0.0.1:9/simple", proxy=with_login(other.url), trusted_hosts=("127.0.0.1",))
    assert fetch(pinned(), tmp_path / "cache", settings=chosen).read_bytes() == CONTENT
    assert other.asked == [f"http://127.0.0.1:9{PAGE}", f"http://127.0.0.1:9/files/{WHEEL}"]
    assert all(sent(other, "Proxy-Authorization"))
    assert not any(sent(other))
    chosen = settings("https://index.invalid/simple", proxy=with_login(other.url))
    with pytest.raises(SourceError, match="does not answer"):
        fetch(pinned(), tmp_path / "none", settings=chosen)
    assert set(other.asked[2:]) == {"CONNECT index.invalid:443"}
    chosen = settings("https://index.invalid/simple", proxy=other.url)
    with pytest.raises(SourceError, match=r"the proxy refuses access \(status 407\)"):
        fetch(pinned(), tmp_path / "none", settings=chosen)


def test_proxies_of_the_environment_hold_unless_a_host_is_excepted(
    index: Index, other: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", other.url)
    fetch(pinned(), tmp_path / "proxy", settings=settings(index.simple))
    assert (index.asked, len(other.asked)) == ([], 2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch(pinned(), tmp_path / "direct", settings=settings(index.simple))
    assert (len(index.asked), len(other.asked)) == (2, 2)
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", f"socks5://me:{QUOTED}@127.0.0.1:1")
    with pytest.raises(
        SourceError, match=r"the proxy 127\.0\.0\.1:1 is no http:// address; name one in pip's proxy or in http_proxy"
    ):
        fetch(pinned(), tmp_path / "none", settings=settings(index.simple))


@pytest.mark.parametrize(
    "address",
    [
        "https://me:{}@127.0.0.1:9/simple",
        "http://me:{}@127.0.0.1:9/simple",
        "http://me:{}@192.0.2.1/simple",
        "ftp://me:{}@127.0.0.1/simple",
        "me:{}@127.0.0.1:9/simple",
        "https://me:{}@[/simple",
        "https://127.0.0.1:9/simple?token={}",
        "https://{}@127.0.0.1:9/simple",
        "file://me:{}@host/simple",
    ],
)
@pytest.mark.parametrize("role", ["index", "find_links", "proxy"])
@pytest.mark.parametrize("secret", ["hunter2hunter", "hunter2/hunter", "hunter2?h#hunter", "hun@ter2@hunter", QUOTED])
def test_no_message_shows_a_secret(address: str, role: str, secret: str, tmp_path: Path) -> None:
    given = address.format(secret if not address.startswith("https://{}@") else quote(secret, safe="%"))
    chosen = {
        "index": lambda: settings(given, retries=0, timeout=0.05),
        "find_links": lambda: settings(find_links=(given,), retries=0, timeout=0.05),
        "proxy": lambda: settings("https://127.0.0.1:9/simple", proxy=given, retries=0, timeout=0.05),
    }[role]()
    with pytest.raises(SourceError) as caught:
        fetch(pinned(), tmp_path / "cache", settings=chosen)
    texts = [str(caught.value), repr(chosen), str(caught.value.__cause__)]
    for part in ("hunter2", "hunter", "ter2", QUOTED):
        assert not any(part in text for text in texts), texts


def test_an_address_is_shown_without_its_secrets() -> None:
    assert shown("https://me:word@example.org:8443/simple?key=1#x") == "https://example.org:8443/simple"
    assert shown("/opt/wheels") == "/opt/wheels"
    assert shown("C:\\wheels") == "C:\\wheels"


def test_plain_http_is_asked_where_pip_would(index: Index, tmp_path: Path) -> None:
    chosen = settings("http://192.0.2.1/simple", timeout=0.05, retries=0)
    with pytest.raises(SourceError, match=r"is not secure .*; use https, or name the host in pip's trusted-host"):
        fetch(pinned(), tmp_path / "none", settings=chosen)
    index.redirects = {PAGE: "http://192.0.2.1/simple/tinytexts/"}
    with pytest.raises(SourceError, match="is not secure"):
        fetch(pinned(), tmp_path / "none", settings=settings(index.simple))
    trusted = settings("http://192.0.2.1/simple", proxy=index.url, trusted_hosts=("192.0.2.1",))
    index.redirects = {}
    assert fetch(pinned(), tmp_path / "cache", settings=trusted).read_bytes() == CONTENT


def test_certificates_are_checked_unless_a_host_is_trusted(tmp_path: Path) -> None:
    with running_index(tls=True) as index:
        index.files[WHEEL] = CONTENT
        with pytest.raises(SourceError, match=r"the certificate of 127\.0\.0\.1:\d+ is not accepted .*PIP_CERT"):
            fetch(pinned(), tmp_path / "none", settings=settings(index.simple))
        assert index.asked == []
        port = index.url.rpartition(":")[2]
        for number, fields in enumerate(
            ({"cert": str(CERTIFICATE)}, {"trusted_hosts": ("127.0.0.1",)}, {"trusted_hosts": (f"127.0.0.1:{port}",)})
        ):
            archive = fetch(pinned(), tmp_path / f"c{number}", settings=settings(index.simple, **fields))
            assert archive.read_bytes() == CONTENT
        other_port: dict[str, object] = {"trusted_hosts": ("127.0.0.1:1", "bad:port:x", "")}
        with pytest.raises(SourceError, match="certificate"):
            fetch(pinned(), tmp_path / "none", settings=settings(index.simple, **other_port))
        with pytest.raises(SourceError, match="pip's cert or client-cert cannot be used"):
            fetch(pinned(), tmp_path / "none", settings=settings(index.simple, cert=str(tmp_path / "absent")))
        fetch(
            pinned(),
            tmp_path / "client",
            settings=settings(index.simple, cert=str(CERTIFICATE), client_cert=str(CERTIFICATE)),
        )


def test_a_tunnel_carries_the_login_of_the_index_past_the_proxy(other: Index, tmp_path: Path) -> None:
    other.proxy_login = ("proxy", SECRET)
    with running_index(tls=True) as index:
        index.files[WHEEL] = CONTENT
        index.login = ("me", "word")
        chosen = settings(
            with_login(index.simple, "me", "word"), proxy=with_login(other.url, "proxy"), cert=str(CERTIFICATE)
        )
        assert fetch(pinned(), tmp_path / "cache", settings=chosen).read_bytes() == CONTENT
        assert (sent(index), sent(index, "Proxy-Authorization")) == ([True, True], [False, False])
    assert (sent(other), sent(other, "Proxy-Authorization")) == ([False, False], [True, True])
    assert other.asked == [f"CONNECT {index.url.removeprefix('https://')}"] * 2


def test_settings_show_no_address() -> None:
    shown_settings = repr(
        IndexSettings(indexes=("https://a:secret@h/",), find_links=("https://a:secret@h/",), proxy="secret")
    )
    assert "secret" not in shown_settings
