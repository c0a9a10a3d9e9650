"""Control groups: where they may be made, by the files, and what they hold and leave, by the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fathom.posttrain.sandbox import cgroup
from fathom.posttrain.sandbox.cgroup import (
    ControlGroup,
    group_prefix,
    make_control_group,
    possible_parents,
    remove_abandoned,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux only")
GIB = 1 << 30


def v2_tree(root: Path, groups: dict[str, str], own: str) -> Path:
    """A tree of version 2: what each group hands down, by path."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"0::{own}\n")
    (root / "proc/self/mountinfo").write_text("30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    for path, handed_down in groups.items():
        folder = root / "sys/fs/cgroup" / path.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.subtree_control").write_text(handed_down)
        (folder / "cgroup.procs").write_text("")
    return root / "sys/fs/cgroup"


class TestWhereGroupsMayBeMade:
    def test_below_the_nearest_ancestor_that_hands_both_controllers_down(self, tmp_path: Path) -> None:
        user = "/user.slice/user-1000.slice/user@1000.service"
        groups = {
            "/": "cpu memory pids",
            "/user.slice": "memory pids",
            user: "cpu memory pids",
            f"{user}/app.slice": "memory pids",
            f"{user}/app.slice/shell.scope": "",
        }
        tree = v2_tree(tmp_path, groups, f"{user}/app.slice/shell.scope")
        found = list(possible_parents(tmp_path))
        assert found[0] == (dict.fromkeys(("memory", "pids"), tree / user[1:] / "app.slice"), 2)
        assert [parents["memory"] for parents, _ in found][-1] == tree

    @pytest.mark.parametrize("handed_down", ["", "memory", "pids", "cpu io"])
    def test_not_where_a_controller_is_missing(self, tmp_path: Path, handed_down: str) -> None:
        v2_tree(tmp_path, {"/": handed_down, "/a": handed_down}, "/a")
        assert list(possible_parents(tmp_path)) == []

    def test_not_where_it_may_not_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        v2_tree(tmp_path, {"/": "memory pids", "/a": ""}, "/a")
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "cgroup.procs")
        assert list(possible_parents(tmp_path)) == []

    def test_version_1_needs_all_its_trees(self, tmp_path: Path) -> None:
        (tmp_path / "proc/self").mkdir(parents=True)
        lines = {name: f"{at}:{name}:/me" for at, name in enumerate(("memory", "pids", "cpuacct"), start=2)}
        mounts = [f"3{at} 24 0:2 / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}" for at, name in enumerate(lines)]
        (tmp_path / "proc/self/mountinfo").write_text("\n".join(mounts))
        for name in lines:
            folder = tmp_path / "sys/fs/cgroup" / name / "me"
            folder.mkdir(parents=True)
            (folder / "cgroup.procs").write_text("")
        (tmp_path / "proc/self/cgroup").write_text("\n".join(lines.values()))
        parents = {name: tmp_path / "sys/fs/cgroup" / name / "me" for name in lines}
        assert list(possible_parents(tmp_path)) == [(parents, 1)]
        (tmp_path / "proc/self/cgroup").write_text("\n".join([lines["memory"], lines["pids"]]))
        assert list(possible_parents(tmp_path)) == []


class TestVersion2Files:
    def test_limits_are_written_and_usage_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        mkdir = Path.mkdir

        def with_files(folder: Path, *arguments: object, **options: object) -> None:
            mkdir(folder)
            for name in ("memory.swap.max", "memory.oom.group"):
                (folder / name).write_text("")

        monkeypatch.setattr(Path, "mkdir", with_files)
        group = ControlGroup(dict.fromkeys(("memory", "pids"), tmp_path), 2, memory_bytes=GIB, processes=7)
        (folder,) = tmp_path.iterdir()
        written = {path.name: path.read_text() for path in folder.iterdir()}
        assert written == {
            "memory.max": str(GIB),
            "pids.max": "7",
            "memory.swap.max": "0",
            "memory.oom.group": "1",
        }
        assert group.joining(["a", "b"])[-4:] == [str(folder / "cgroup.procs"), "--", "a", "b"]
        (folder / "memory.current").write_text("100\n")
        (folder / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
        (folder / "pids.current").write_text("3\n")
        (folder / "memory.events").write_text("low 0\noom 1\noom_kill 0\n")
        usage = group.usage()  # no memory.peak: a kernel before 5.19
        assert (usage.memory_bytes, usage.processor_seconds, usage.processes) == (100, 1.5, 3)
        assert not usage.out_of_memory
        (folder / "memory.peak").write_text("300\n")
        (folder / "memory.events").write_text("oom 1\noom_kill 2\n")
        assert (group.usage().memory_bytes, group.usage().out_of_memory) == (300, True)

    def test_what_cannot_be_limited_is_no_group_and_leaves_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(path: Path, *arguments: object, **options: object) -> int:
            raise PermissionError(path)

        monkeypatch.setattr(cgroup, "usable_parents", lambda: (dict.fromkeys(("memory", "pids"), tmp_path), 2))
        monkeypatch.setattr(Path, "write_text", refused)
        assert make_control_group(GIB, 8) is None
        assert list(tmp_path.iterdir()) == []


def writable_v2_tree() -> Path | None:
    """The mounted tree of version 2, where this process may make groups in it; they need no controllers."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines() if sys.platform == "linux" else []:
        fields, described = line.split(" - ")[0].split(), line.split(" - ")[1].split()
        if described[0] == "cgroup2" and os.access(f"{fields[4]}/cgroup.procs", os.W_OK):
            return Path(fields[4])
    return None


def kernel_groups() -> list[tuple[str, dict[str, Path], int]]:
    usable = cgroup.usable_parents() if sys.platform == "linux" else None
    tree = writable_v2_tree()
    found = [(f"usable version {usable[1]}", *usable)] if usable else []
    return [*found, *([("a bare tree of version 2", dict.fromkeys(("memory", "pids"), tree), 2)] if tree else [])]


KERNEL_GROUPS = kernel_groups()

if KERNEL_GROUPS:

    @pytest.mark.parametrize(("parents", "version"), [pytest.param(*case, id=name) for name, *case in KERNEL_GROUPS])
    class TestKernel:
        def test_processes_join_and_all_are_killed(
            self, parents: dict[str, Path], version: int, monkeypatch: pytest.MonkeyPatch
        ) -> None:
            if cgroup.usable_parents() != (parents, version):
                monkeypatch.setattr(ControlGroup, "_limit", lambda *_: None)
            group = ControlGroup(parents, version, memory_bytes=GIB, processes=8)
            daemon = ["/bin/sh", "-c", "sleep 100 & setsid sleep 100 & wait"]
            with subprocess.Popen(group.joining(daemon)) as process:
                for _ in range(500):
                    if len(group._pids()) == 3:
                        break
                    time.sleep(0.01)
                assert process.pid in group._pids()
                assert len(group._pids()) == 3
                group.kill()
                assert process.wait(10.0) == -9
            assert group._pids() == set()
            group.close()
            assert [left for parent in parents.values() for left in parent.glob(f"{group_prefix(os.getpid())}*")] == []

        def test_abandoned_groups_are_removed_and_others_kept(self, parents: dict[str, Path], version: int) -> None:
            with subprocess.Popen(["true"]) as ended:
                ended.wait()
            parent = parents["memory"]
            abandoned, own = parent / f"{group_prefix(ended.pid)}x", parent / f"{group_prefix(os.getpid())}x"
            elsewhere = parent / f"fathom-sandbox-1-{ended.pid}-x"  # another PID namespace, where it may be alive
            for folder in (abandoned, own, elsewhere):
                folder.mkdir()
            try:
                remove_abandoned(parent)
                assert not abandoned.exists()
                assert own.exists()
                assert elsewhere.exists()
            finally:
                own.rmdir()
                elsewhere.rmdir()
