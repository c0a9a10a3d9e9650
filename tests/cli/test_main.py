"""The frame of the command line: help without torch, errors in one line, exit codes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fathom
from fathom.cli.display import duration
from fathom.cli.main import guarded
from fathom.errors import CheckpointError, Interrupted
from fathom.progress import amount, size


def fathom_cli(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    code = "from fathom.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], input=stdin, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["models"], ["--version"]])
def test_help_and_models_never_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from fathom.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as error: assert not error.code, error.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_version() -> None:
    assert fathom_cli("--version").stdout == f"fathom {fathom.__version__}\n"


def test_unknown_option_and_verb_exit_with_2() -> None:
    assert fathom_cli("train", "--nonsense").returncode == 2
    assert fathom_cli("nonsense").returncode == 2


def test_missing_model_and_recipe_are_one_line(tmp_path: Path, call) -> None:
    call("generate", tmp_path / "none", "--prompt", "x").refused("none", "no such file, directory or model")
    call("chat", tmp_path).refused("holds no run, checkpoint or config.json")
    call("evaluate", tmp_path).refused("holds no run")
    call("train", tmp_path / "none.toml").refused("none.toml: no such file", "check the path")
    call("train", tmp_path).refused("is a folder")


def test_sampling_options_are_checked_before_the_model_is_opened(tmp_path: Path, call) -> None:
    call("generate", tmp_path, "--prompt", "x", "--top-p", "1.5").refused("--top-p", "1.5")
    call("generate", tmp_path, "--prompt", "x", "--max-tokens", "0").refused("--max-tokens")


def raising(error: Exception) -> Callable[[], object]:
    def command() -> object:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [(CheckpointError("broken\n  in two lines"), 2, "error"), (Interrupted("SIGINT arrived"), 130, "stopped")],
)
def test_errors_become_exit_codes(error: Exception, code: int, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        guarded(raising(error))
    assert stopped.value.code == code
    assert capsys.readouterr().err == f"{word}: {' '.join(str(error).split())}\n"


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        guarded(raising(RuntimeError("a bug")))


def test_numbers_are_written_shortly() -> None:
    assert [duration(s) for s in (1.234, 42.4, 425, 7400)] == ["1.2 s", "42 s", "7 min 5 s", "2 h 3 min"]
    assert [amount(n) for n in (950, 12_345, 4_560_000, 2e9)] == ["950", "12.3k", "4.56M", "2G"]
    assert [size(n) for n in (0, 950, 12_345, 44_314_880, 1.5e9)] == ["0 B", "950 B", "12.3 kB", "44.3 MB", "1.5 GB"]
    assert [size(n) for n in (999, 999.6, 999_499, 999_999, 2e12)] == ["999 B", "1 kB", "999 kB", "1 MB", "2 TB"]
