"""A hub, or who speaks for it, cannot place files outside the cache."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fathom.checkpoint.hub import fetch
from fathom.checkpoint.hub.names import HubName
from fathom.errors import CheckpointError
from tests.hub_server import COMMIT


@pytest.mark.parametrize(
    "file",
    ["../x.safetensors", "/etc/x", "a/../../x", "a\\..\\x", "C:/x", "", "a//b", "./x", "a\nb", "\x1b]0;x\x07", "a/.."],
)
def test_names_that_leave_the_cache_are_refused(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _answers(monkeypatch, COMMIT, ["config.json", file])
    with pytest.raises(CheckpointError, match="which is no file of a repository") as caught:
        fetch.fetch_model("owner/tiny", endpoint="http://127.0.0.1:9")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("commit", ["../../x", "main", "", "0" * 39, "None"])
def test_a_commit_that_is_none_is_refused(commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _answers(monkeypatch, commit, ["config.json"])
    with pytest.raises(CheckpointError, match="for a commit"):
        fetch.fetch_model("owner/tiny", endpoint="http://127.0.0.1:9")


def test_files_in_folders_are_names_of_a_repository() -> None:
    fetch._check_listing(HubName("owner/tiny"), ["config.json", "a/b.gguf", ".gitattributes", "天.json"], COMMIT)


def _answers(monkeypatch: pytest.MonkeyPatch, commit: str, files: list[str]) -> None:
    info = SimpleNamespace(sha=commit, siblings=[SimpleNamespace(rfilename=file) for file in files])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, *args, **kwargs: info)
    monkeypatch.setattr(fetch, "_cached", lambda *args, **kwargs: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
