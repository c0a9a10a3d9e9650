"""Atomic publishing: all or nothing, whatever fails and whenever the process dies."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fathom import files
from fathom.errors import DataError, ResourceError, explain_os_error

Publish = Callable[[Path, str], None]


def publish_file(path: Path, text: str) -> None:
    with files.publish_file(path) as partial:
        partial.write_text(text)


def publish_directory(path: Path, text: str) -> None:
    with files.publish_directory(path, replace=True) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text(text)


def content(path: Path) -> str:
    return (path / "inner" / "file").read_text() if path.is_dir() else path.read_text()


BOTH = pytest.mark.parametrize("publish", [publish_file, publish_directory])


def test_files_and_folders_appear_with_usual_permissions_and_parents(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        publish_file(tmp_path / "a" / "file", "x")
        publish_directory(tmp_path / "b" / "folder", "x")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a" / "file").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "b" / "folder").stat().st_mode) == 0o755


@BOTH
def test_a_failure_at_any_system_call_keeps_the_old_content_and_leaves_nothing(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "made"
    publish(target, "old")
    refused: list[str] = []
    for _ in one_more_call_at_a_time(lambda: publish(target, "new"), refused, monkeypatch):
        files.remove_leftovers(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["made"]
        if content(target) == "new":  # it failed behind the last rename
            publish(target, "old")
    assert content(target) == "new"
    assert len(refused) >= 4
    assert all("made: not written, the disk is full; free disk space" in message for message in refused)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def one_more_call_at_a_time(
    publish: Callable[[], None], refused: list[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Fail the first, second, ... of the calls that change the disk; yield after each failure, end without one."""
    for allowed in range(40):
        left = [allowed]
        with monkeypatch.context() as patch:
            for name in ("fsync", "rename", "replace", "mkdir", "open"):
                patch.setattr(os, name, counted(getattr(os, name), left))
            try:
                publish()
            except ResourceError as error:
                refused.append(str(error))
        if left[0] >= 0:
            return
        yield


def counted(call: Callable[..., object], left: list[int]) -> Callable[..., object]:
    def refuse_one(*arguments: object, **options: object) -> object:
        left[0] -= 1
        if left[0] == -1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return call(*arguments, **options)

    return refuse_one


@BOTH
def test_an_error_of_the_block_passes_through_and_nothing_is_published(publish: Publish, tmp_path: Path) -> None:
    publishing = files.publish_file if publish is publish_file else files.publish_directory
    with pytest.raises(KeyError), publishing(tmp_path / "made"):
        raise KeyError("mine")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_never_published_over_another_unless_asked(tmp_path: Path) -> None:
    target = tmp_path / "made"
    target.mkdir()
    with files.publish_directory(target) as partial:
        (partial / "file").write_text("all")
        assert list(target.iterdir()) == []
    assert (target / "file").read_text() == "all"
    with pytest.raises(DataError, match="exists and is not empty"), files.publish_directory(target):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_killed_process_leaves_the_old_content_and_a_temporary_that_the_next_removes(
    kind: str, tmp_path: Path
) -> None:
    """While the process lives its temporary is kept, even though another publishes the same name."""
    publish = publish_file if kind == "file" else publish_directory
    target = tmp_path / "made"
    publish(target, "old")
    options = ", replace=True" if kind == "directory" else ""
    script = f"""
        import sys, time
        from pathlib import Path
        from fathom import files
        with files.publish_{kind}(Path(sys.argv[1]){options}) as partial:
            print(partial.name, flush=True)
            time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        temporary = tmp_path / process.stdout.readline().strip()
        publish(target, "newer")
        files.remove_leftovers(tmp_path)
        assert temporary.exists()
        process.send_signal(signal.SIGKILL)
    assert content(target) == "newer"
    assert temporary.exists()
    publish(tmp_path / "other", "x")
    assert temporary.exists()
    publish(target, "newest")
    assert {path.name for path in tmp_path.iterdir()} == {"made", "other"}


def test_a_replacement_cut_between_its_renames_is_undone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        publish_directory(tmp_path / name, "old")
        (tmp_path / name).rename(tmp_path / f".{name}{files.REPLACED}")
    publish_directory(tmp_path / "b", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".a{files.REPLACED}", "b"]
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (content(tmp_path / "a"), content(tmp_path / "b")) == ("old", "new")


def test_without_locks_only_old_temporaries_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_lock", lambda path, wait=True: None)
    old, young = tmp_path / f".made.0{files.PARTIAL}", tmp_path / f".made.1{files.PARTIAL}"
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    publish_file(tmp_path / "made", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, "made"]


def test_removing_a_folder_renames_it_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_directory(tmp_path / "made", "x")
    with monkeypatch.context() as patch:
        patch.setattr(files, "_remove", lambda path: None)
        files.remove_directory(tmp_path / "made")
    (left,) = tmp_path.iterdir()
    assert files.is_leftover(left)
    files.remove_leftovers(tmp_path, "made")
    assert list(tmp_path.iterdir()) == []


def test_json_is_written_and_read_back(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"ä": [1, None]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8").endswith("}\n")
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"ä": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.json_text(float("nan"), allow_nan=False)


def test_digests_are_those_of_hashlib(tmp_path: Path) -> None:
    for size in (0, 1, files._BLOCK_BYTES, files._BLOCK_BYTES * 2 + 7):
        data = os.urandom(size)
        (tmp_path / "data").write_bytes(data)
        assert files.file_sha256(tmp_path / "data") == files.sha256(data) == hashlib.sha256(data).hexdigest()
    assert files.sha256("ä") == hashlib.sha256("ä".encode()).hexdigest()
    assert files.fingerprint({"a": 1, "b": [2]}) == files.fingerprint({"b": [2], "a": 1})
    assert files.fingerprint({"a": 1}) != files.fingerprint({"a": 2})


def test_a_digest_ends_early_when_asked(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x")
    assert files.file_sha256(tmp_path / "data", stop=lambda: True) == hashlib.sha256().hexdigest()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full; free disk space"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permission"),
        (errno.EROFS, "read-only; choose another folder"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENAMETOOLONG, "choose a shorter one"),
        (errno.EIO, "check the disk"),
        (errno.ECHILD, "No child processes; check the path"),
    ],
)
def test_an_os_error_is_explained_by_its_number(number: int, words: str) -> None:
    assert words in explain_os_error(OSError(number, os.strerror(number)))


def test_only_a_full_disk_is_called_full() -> None:
    for number in set(errno.errorcode) - {errno.ENOSPC, errno.EDQUOT}:
        assert "disk space" not in explain_os_error(OSError(number, os.strerror(number)))
    assert "odd" in explain_os_error(OSError("odd"))
    assert "OSError" in explain_os_error(OSError())


def publish_several(folder: Path, text: str) -> None:
    with files.publish_files([folder / name for name in "abc"]) as partials:
        for partial in partials:
            partial.write_text(text)


def test_several_files_appear_all_or_none_whichever_call_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[str] = []
    for _ in one_more_call_at_a_time(lambda: publish_several(tmp_path, "x"), refused, monkeypatch):
        files.remove_leftovers(tmp_path)
        found = sorted(path.name for path in tmp_path.iterdir())
        assert found in ([], ["a", "b", "c"])  # all, where it failed behind the last rename
        for path in tmp_path.iterdir():
            path.unlink()
    assert len(refused) >= 8
    assert all(message.startswith(f"{tmp_path / 'a'}: not written, the disk is full") for message in refused)
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["x"] * 3
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "b", "c"]


def test_a_process_killed_between_the_renames_of_several_files_leaves_what_the_next_removes(tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        from pathlib import Path
        from fathom import files
        plain = Path.replace
        def replace(self, target):
            if self.name == "b":
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(self, target)
        Path.replace = replace
        with files.publish_files([Path(sys.argv[1]) / name for name in "abc"]) as partials:
            pass
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], check=False)
    assert (tmp_path / "c").exists()
    (tmp_path / "mine").write_text("kept")
    files.remove_leftovers(tmp_path, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    publish_several(tmp_path, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "mine"]
