"""What a process may use: memory, the smallest limit of the control groups it is in, and open files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fathom.system import available_memory, memory_limit, usable_cores

GIB = 1 << 30
V1 = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
V2 = "41 31 0:38 {root} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"


class Machine:
    """A file system with the files that say how much memory there is."""

    def __init__(self, root: Path, *, total: int = 64 * GIB, available: int = 48 * GIB) -> None:
        self.root = root
        self.write("proc/meminfo", f"MemTotal: {total >> 10} kB\nMemFree: 1 kB\nMemAvailable: {available >> 10} kB\n")

    def write(self, path: str, text: str) -> None:
        where = self.root / path
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text, encoding="utf-8")

    def process(self, groups: str, mounts: str) -> None:
        self.write("proc/self/cgroup", groups)
        self.write("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\nbroken\n" + mounts)

    def v1(self, group: str, limit: int, usage: int = 0, cache: int = 0) -> None:
        where = f"sys/fs/cgroup/memory/{group}"
        self.write(f"{where}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{where}/memory.usage_in_bytes", f"{usage}\n")
        self.write(f"{where}/memory.stat", f"cache 5\ninactive_file 7\ntotal_inactive_file {cache}\n")

    def v2(self, group: str, limit: int | None, usage: int = 0, cache: int = 0) -> None:
        where = f"sys/fs/cgroup/{group}"
        self.write(f"{where}/memory.max", "max\n" if limit is None else f"{limit}\n")
        self.write(f"{where}/memory.current", f"{usage}\n")
        self.write(f"{where}/memory.stat", f"anon 5\ninactive_file {cache}\n")

    @property
    def memory(self) -> tuple[float, float]:
        return memory_limit(self.root) / GIB, available_memory(self.root) / GIB


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_control_groups_it_is_the_machines(machine: Machine) -> None:
    assert machine.memory == (64, 48)


def test_the_smallest_limit_up_the_tree_counts_and_what_is_left_below_each(machine: Machine) -> None:
    machine.process("0::/pod/container/worker\n", V2.format(root="/"))
    machine.v2("pod/container/worker", None, usage=1 * GIB)
    assert machine.memory == (64, 48)
    machine.v2("pod/container", 8 * GIB, usage=3 * GIB, cache=1 * GIB)
    assert machine.memory == (8, 6)
    machine.v2("pod", 10 * GIB, usage=9 * GIB)
    assert machine.memory == (8, 1)
    machine.v2("pod/container/worker", 2 * GIB, usage=5 * GIB)
    assert machine.memory == (2, 0)


def test_version_1_and_both_side_by_side(machine: Machine) -> None:
    machine.process("5:cpu,memory:/job\n4:devices:/job\n0::/\n", V1.format(root="/") + V2.format(root="/"))
    machine.v1("", 9223372036854771712, usage=30 * GIB)
    assert machine.memory == (64, 48)
    machine.v1("job", 4 * GIB, usage=2 * GIB, cache=GIB // 2)
    assert machine.memory == (4, 2.5)


def test_a_container_that_sees_only_its_own_part_of_the_tree(machine: Machine) -> None:
    machine.process("7:memory:/docker/abc/inner\n", V1.format(root="/docker/abc"))
    machine.v1("inner", 6 * GIB)
    machine.v1("", 5 * GIB)
    assert machine.memory == (5, 5)


def test_available_memory_of_the_machine_counts_where_it_is_less_than_a_limit(tmp_path: Path) -> None:
    machine = Machine(tmp_path, total=16 * GIB, available=1 * GIB)
    machine.process("0::/a\n", V2.format(root="/"))
    machine.v2("a", 8 * GIB)
    assert machine.memory == (8, 1)


def test_this_machine_and_one_without_proc_have_some(tmp_path: Path) -> None:
    assert 0 < available_memory() <= memory_limit()
    assert 0 < available_memory(tmp_path / "none") <= memory_limit(tmp_path / "none")


def test_a_control_groups_share_of_the_processors_counts(machine: Machine) -> None:
    assert usable_cores(machine.root) >= 1
    machine.process("0::/pod/worker\n", V2.format(root="/"))
    machine.write("sys/fs/cgroup/pod/cpu.max", "50000 100000\n")
    machine.write("sys/fs/cgroup/pod/worker/cpu.max", "max 100000\n")
    assert usable_cores(machine.root) == 0.5
    machine.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "25000\n")
    machine.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert usable_cores(machine.root) == 0.25
    machine.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    assert usable_cores(machine.root) == 0.5


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on open files")
@pytest.mark.parametrize(("option", "wanted", "expected"), [("-Sn", 200, 200), ("-Sn", 100, 128), ("-n", 200, 128)])
def test_the_limit_on_open_files_is_raised_where_that_is_allowed(option: str, wanted: int, expected: int) -> None:
    code = f"from fathom.system import raise_file_limit as r, open_files as o; print(r({wanted}), 0 < o() < 60)"
    command = ["sh", "-c", f'ulimit {option} 128 && exec "$@"', "sh", sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert printed.split() == [str(expected), "True"]
