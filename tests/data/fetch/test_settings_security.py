"""Settings are those that pip itself resolves from the same files and variables, and nothing else is read from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pip._internal.commands import create_command

from fathom.data.fetch import fetch, read_settings
from fathom.data.fetch.settings import DEFAULT_INDEX, configuration_files
from fathom.errors import SourceError
from tests.data.fetch.conftest import CONTENT, pinned
from tests.package_index import Index

ADDRESSES = st.sampled_from(["https://a.example/simple", "file:///mirror", "/a/folder", "https://u:p%40@b.example/x"])
SEVERAL = st.lists(ADDRESSES, min_size=1, max_size=2).map(" ".join)
VALUES: dict[str, st.SearchStrategy[str]] = {
    "index-url": ADDRESSES,
    "extra-index-url": SEVERAL,
    "find-links": SEVERAL,
    "no-index": st.sampled_from(["true", "0", "no", "1"]),
    "proxy": st.sampled_from(["http://p.example:1", "u:p@p.example:2"]),
    "cert": st.sampled_from(["/a.pem", "/b.pem"]),
    "client-cert": st.just("/c.pem"),
    "timeout": st.sampled_from(["3", "4.5"]),
    "default-timeout": st.sampled_from(["5", "6"]),
    "retries": st.sampled_from(["0", "7"]),
    "trusted-host": st.sampled_from(["a.example", "a.example b.example:8443"]),
}
OPTIONS = st.fixed_dictionaries({}, optional=VALUES)
FILE = st.dictionaries(st.sampled_from(["global", "download", "install"]), OPTIONS, max_size=3)


def written(path: Path, sections: dict[str, dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        line for name, values in sections.items() for line in (f"[{name}]", *(f"{k} = {v}" for k, v in values.items()))
    ]
    path.write_text("\n".join(lines))


def places(tmp_path: Path) -> list[Path]:
    """Return the files of pip below a folder; if one of them were none of pip's, pip would not read what is there."""
    return [path for path in configuration_files(os.environ) if path.is_relative_to(tmp_path)]


def as_pip_resolves() -> dict[str, Any]:
    options, _ = create_command("download").parse_args([])
    return {
        "indexes": () if options.no_index else (options.index_url, *options.extra_index_urls),
        "find_links": tuple(options.find_links),
        "proxy": options.proxy or None,
        "cert": options.cert,
        "client_cert": options.client_cert,
        "timeout": float(options.timeout),
        "retries": options.retries,
        "trusted_hosts": tuple(options.trusted_hosts),
    }


@examples(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(FILE, min_size=3, max_size=3), chosen=st.none() | FILE, variables=OPTIONS)
def test_files_and_variables_mean_what_they_mean_to_pip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files, chosen, variables
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("XDG_CONFIG_DIRS", str(tmp_path / "site"))
        patched.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / "config"))
        found = places(tmp_path)
        assert len(found) >= 2
        for path, sections in zip(found, files, strict=False):
            written(path, sections)
        if chosen is not None:
            written(tmp_path / "chosen.conf", chosen)
            patched.setenv("PIP_CONFIG_FILE", str(tmp_path / "chosen.conf"))
        for name, value in variables.items():
            patched.setenv(f"PIP_{name.upper().replace('-', '_')}", value)
        ours, expected = read_settings(), as_pip_resolves()
        assert {name: getattr(ours, name) for name in expected} == expected


def test_no_file_is_read_where_the_null_device_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(places(tmp_path)[0], {"global": {"index-url": "https://a.example"}})
    assert read_settings().indexes == ("https://a.example",)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert read_settings().indexes == (DEFAULT_INDEX,)


def test_variables_are_not_expanded_and_an_error_shows_no_line(tmp_path: Path) -> None:
    file = tmp_path / "pip.conf"
    environment = {"PIP_CONFIG_FILE": str(file), "TOKEN": "hunter2"}
    file.write_text("[global]\nindex-url = https://${TOKEN}@a.example/%(TOKEN)s\n")
    assert read_settings(environment).indexes[0] == "https://${TOKEN}@a.example/%(TOKEN)s"
    file.write_text("[global]\nindex-url = https://a:hunter2@b\nhunter2\n")
    with pytest.raises(SourceError, match=r"pip\.conf: pip's settings cannot be read \(ParsingError\)") as caught:
        read_settings(environment)
    assert "hunter2" not in str(caught.value)
    file.write_bytes(b"[global]\n\xff\xfe")
    with pytest.raises(SourceError, match="UnicodeDecodeError"):
        read_settings(environment)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("NO_INDEX", "perhaps", "no-index: 'perhaps' is neither true nor false"),
        ("TIMEOUT", "soon", "timeout: 'soon' is no number above 0"),
        ("TIMEOUT", "0", "timeout: '0' is no number above 0"),
        ("RETRIES", "-1", "retries: '-1' is no number of 0 or more"),
        ("RETRIES", "nan", "retries: 'nan' is no number of 0 or more"),
    ],
)
def test_values_of_the_wrong_kind_are_named(name: str, value: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read_settings({f"PIP_{name}": value, "PIP_CONFIG_FILE": os.devnull})


def test_what_is_configured_is_what_fetch_asks(
    index: Index, other: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.files = {}
    written(tmp_path / "chosen.conf", {"global": {"index-url": index.simple, "extra-index-url": other.simple}})
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "chosen.conf"))
    assert fetch(pinned(), tmp_path / "cache").read_bytes() == CONTENT
    assert (len(index.asked), len(other.asked)) == (1, 2)
