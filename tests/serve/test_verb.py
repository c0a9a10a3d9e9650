"""What the command line refuses before anything is served."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fathom.cli.main import guarded, make_app
from fathom.cli.options import parse_bytes
from fathom.cli.serve import read_keys
from fathom.errors import DataError, SpecError
from fathom.serve.model_pool import ModelPool
from fathom.serve.settings import ServeSettings


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        guarded(lambda: make_app()(["serve", *arguments]))
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_port_in_use_is_reported_before_the_model_answers(
    capsys: pytest.CaptureFixture[str], directory: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"127.0.0.1:{port} cannot be used" in refused(capsys, str(directory), "--port", port, "--device", "cpu")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights", "int3"], "--weights: unknown value 'int3'"),
        (["--cache", "int3"], "--cache: unknown value"),
        (["--draft", "luck"], "--draft: unknown value"),
        (["--max-batch", "0"], "--max-batch"),
        (["--api-key-file", "/nowhere/keys"], "--api-key-file"),
        (["--host", "no.such.host.invalid"], "--host"),
        (["--keys", "/nowhere/keys.toml"], "/nowhere/keys.toml: no such file; check the path"),
        (["--access-log", "xml"], "--access-log: 'xml' is no form of the log; give text, json or off"),
        (["--access-log-file", "/nowhere/log"], "--access-log-file: /nowhere/log cannot be written"),
        (["--drain-seconds", "-1"], "--drain-seconds"),
        (["--max-concurrent-requests", "0"], "--max-concurrent-requests: must be above 0, got 0"),
        (["--max-preprocessing", "-3"], "--max-preprocessing: must be above 0, got -3"),
        (["--preprocess-threads", "0"], "--preprocess-threads: must be above 0, got 0"),
        (["--preprocess-threads", "100000"], "--preprocess-threads: 100000 exceed 256"),
        (["--connections", "0"], "--connections: must be above 0, got 0"),
        (["--connections-per-client", "0"], "--connections-per-client: must be above 0, got 0"),
        (["--head-timeout-seconds", "0"], "--head-timeout-seconds: must be above 0"),
        (["--body-timeout-seconds", "-1"], "--body-timeout-seconds: must be above 0"),
        (["--write-timeout-seconds", "nan"], "--write-timeout-seconds: must be above 0, got nan"),
        (
            ["--root-path", "fathom"],
            "--root-path: 'fathom' is no path that the server can be published under; give one",
        ),
        (["--trusted-proxy", "proxy.example"], "trusted_proxies: 'proxy.example' is no address or network; give one"),
        (["--model-memory", "plenty"], "--model-memory: 'plenty' is no size; give one such as 8GiB or 500MB"),
        (["--model-memory", "0"], "--model-memory: '0' is no size above 0"),
        (["--model-memory", "1KiB"], "alone takes"),
        (["--load-timeout-seconds", "0"], "--load-timeout-seconds: must be above 0"),
        (["--alias", "gpt-4o=gpt"], "--alias: 'gpt-4o=gpt' is no alias of 'model'; give one such as gpt-4o=model"),
        (["--alias", "a", "--alias", "a"], "--alias: 'a' is taken"),
        (["/elsewhere/model"], "'model' names two models; give one another name: NAME="),
        (["b=/elsewhere/model", "--served-name", "x"], "--served-name: 'x' is one name, and 2 models are served"),
        (["b=/elsewhere/model"], "/elsewhere/model: no such file"),
        (["--stall-timeout-seconds", "nan"], "--stall-timeout-seconds: must be above 0, got nan"),
    ],
)
def test_options_are_checked(
    capsys: pytest.CaptureFixture[str], directory: Path, arguments: list[str], words: str
) -> None:
    error = refused(capsys, str(directory), "--port", "0", "--device", "cpu", *arguments)
    assert error.count("error: ") == 1
    assert words in error


def test_limits_are_taken_from_the_command_line(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServeSettings] = []
    monkeypatch.setattr("fathom.cli.serve._run", lambda make_pool, settings, *others: seen.append(settings))
    limits = ["--max-concurrent-requests", "7", "--max-preprocessing", "5", "--preprocess-threads", "3"]
    limits += ["--connections", "99", "--connections-per-client", "9", "--head-timeout-seconds", "2.5"]
    limits += ["--body-timeout-seconds", "3.5", "--write-timeout-seconds", "4.5", "--trusted-proxy", "10.0.0.0/24"]
    arguments = [str(directory), "--device", "cpu", *limits, "--stall-timeout-seconds", "9.5"]
    with pytest.raises(SystemExit) as ended:
        guarded(lambda: make_app()(["serve", *arguments]))
    assert not ended.value.code
    (settings,) = seen
    found = settings.limits
    assert (found.max_concurrent_requests, found.max_preprocessing, found.preprocess_threads) == (7, 5, 3)
    assert (found.connections, found.connections_per_client) == (99, 9)
    assert (found.head_timeout_seconds, found.body_timeout_seconds, found.write_timeout_seconds) == (2.5, 3.5, 4.5)
    assert settings.trusted_proxies == ("127.0.0.0/8", "::1", "10.0.0.0/24")
    assert settings.stall_timeout_seconds == 9.5


def test_several_models_get_names_aliases_and_a_share_of_the_memory(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[ModelPool] = []
    monkeypatch.setattr("fathom.cli.serve._run", lambda make_pool, *others: made.append(make_pool()))
    arguments = [
        f"a={directory}",
        f"b={directory}",
        "--alias",
        "gpt-4o=b",
        "--model-memory",
        "64MiB",
        "--device",
        "cpu",
    ]
    with pytest.raises(SystemExit) as ended:
        guarded(lambda: make_app()(["serve", *arguments]))
    assert not ended.value.code
    (pool,) = made
    pool.close()
    assert [card["id"] for card in pool.cards()] == ["a", "b", "gpt-4o"]
    assert pool.memory == 64 << 20
    assert not pool.workers()
    assert "b, gpt-4o: " in capsys.readouterr().err


def test_one_model_within_a_memory_is_loaded_at_the_start(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ModelPool] = []
    monkeypatch.setattr("fathom.cli.serve._run", lambda make_pool, *others: made.append(make_pool()))
    with pytest.raises(SystemExit) as ended:
        guarded(lambda: make_app()(["serve", str(directory), "--model-memory", "1GB", "--device", "cpu"]))
    assert not ended.value.code
    (pool,) = made
    assert list(pool.workers()) == ["model"]
    pool.close()


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 << 30), ("8gb", 8 * 10**9), ("1.5G", 1_500_000_000), ("4096", 4096), ("2 MiB", 2 << 20), ("7B", 7)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes("--model-memory", text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "8GiBs", "1e9", "0.0001", "nan", "∞"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is no size"):
        parse_bytes("--model-memory", text)


def test_nonsense_is_refused_before_a_model_is_opened(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    monkeypatch.setattr("fathom.cli.model_options.open_model", lambda *arguments: pytest.fail("opened"))
    assert "--preprocess-threads" in refused(capsys, str(directory), "--preprocess-threads", "0")


def test_keys_come_from_a_file_and_the_environment(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    path.touch(0o644)
    path.chmod(0o644)
    path.write_text("# ours\nfirst-key-1\n\n second-key \n")
    assert read_keys(path, "third-key-3, first-key-1,") == ("first-key-1", "second-key", "third-key-3")
    assert read_keys(None, "") == ()
    warned = capsys.readouterr().err
    assert "other users may read" in warned
    remedy = warned.rpartition("run: ")[2].strip()
    subprocess.run(remedy, shell=True, check=True)
    assert read_keys(path, "") == ("first-key-1", "second-key")
    assert capsys.readouterr().err == ""
    path.write_text("# none\n")
    with pytest.raises(DataError, match="holds no keys"):
        read_keys(path, "")
    with pytest.raises(DataError, match="cannot be read"):
        read_keys(tmp_path / "missing", "")
