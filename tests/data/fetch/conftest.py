from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fathom.data.fetch import IndexSettings
from fathom.spec.package import PinnedPackage
from tests.package_index import Index, running_index

WHEEL = "tinytexts-1.0-py3-none-any.whl"
CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture(autouse=True)
def nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of this machine hold, and pauses between attempts are short."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith(("_proxy", "ca_bundle")) or name == "NETRC":
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "USERPROFILE", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "APPDATA"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setattr("fathom.data.fetch.transport._PAUSE", 0.001)


@pytest.fixture
def index() -> Iterator[Index]:
    with running_index() as running:
        running.files[WHEEL] = CONTENT
        yield running


@pytest.fixture
def other() -> Iterator[Index]:
    """A second host, as far as credentials are concerned: another port."""
    with running_index() as running:
        running.files[WHEEL] = CONTENT
        yield running


def pinned(content: bytes = CONTENT, package: str = "tinytexts", version: str = "1.0") -> PinnedPackage:
    return PinnedPackage(package=package, version=version, sha256=hashlib.sha256(content).hexdigest(), licence="MIT")


def settings(*indexes: str, **fields: Any) -> IndexSettings:
    return IndexSettings(**{"indexes": indexes, "retries": 2, "timeout": 5.0, **fields})
