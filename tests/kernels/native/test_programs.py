"""Programs in C over the native library: on this machine, with sanitizers, and on other processors under qemu."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fathom.kernels.native import build, library

PROGRAMS = Path(__file__).parent / "programs"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the native library is not built on Windows")


def run(*command: str | Path) -> str:
    """Run a program that must succeed and say nothing of errors; return what it prints."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def compiled(native: None, tmp_path: Path):
    def program(name: str, **options: str) -> Path:
        build.build(tmp_path / name, program=PROGRAMS / f"{name}.c", **options)
        return tmp_path / name

    return program


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", ["kernels", "pool"])
def test_all_instruction_sets_agree_and_the_pool_bears_contention_forks_and_company(name, tmp_path):
    compiler = [*build.find_compiler(), "-std=gnu11", "-O1", "-pthread", f"-I{build.SOURCES}"]
    subprocess.run([*compiler, "-o", tmp_path / name, PROGRAMS / f"{name}.c", build.LIBRARY, "-lm"], check=True)
    printed = run(tmp_path / name)
    lines = list(library.usable_isas()) if name == "kernels" else ["ok"]
    assert [line.split()[0] for line in printed.splitlines()] == lines


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kernels", "pool"])
def test_sanitizers_find_no_wrong_address_and_no_undefined_behaviour(name, compiled):
    assert run(compiled(name, sanitize="address,undefined"))


@pytest.mark.slow
def test_threads_of_the_pool_do_not_race(compiled):
    assert run(compiled("pool", sanitize="thread"), "0") == "ok\n"


@pytest.fixture(scope="session")
def foreign(tmp_path_factory):
    """A function that builds the kernels' program for a target, once."""
    if not importlib.util.find_spec("ziglang"):
        pytest.skip("could not import 'ziglang'")
    if not shutil.which("qemu-aarch64"):
        pytest.skip("no qemu-user")
    folder = tmp_path_factory.mktemp("foreign")

    def program(target: str) -> Path:
        path = folder / target
        if not path.exists():
            build.build(path, program=PROGRAMS / "kernels.c", compiler=build.ZIG, target=target)
        return path

    return program


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processor", "printed"),
    [
        ("cortex-a57", ["scalar"]),  # NEON without dot products
        ("cortex-a76", ["scalar", "neon"]),
        ("max", ["scalar bf16 i8mm", "neon bf16 i8mm"]),
    ],
)
def test_arm_processors_run_what_they_have(processor, printed, foreign):
    assert run("qemu-aarch64", "-cpu", processor, foreign("aarch64-linux-musl")).splitlines() == printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processor", "printed"),
    [
        ("Nehalem", ["scalar"]),
        ("max,-avx2", ["scalar"]),
        ("max,-fma", ["scalar"]),
        ("max,-f16c", ["scalar"]),
        ("max,-xsave", ["scalar"]),
        ("max", ["scalar", "avx2"]),
    ],
)
def test_lesser_intel_processors_never_reach_what_they_lack(processor, printed, foreign):
    assert run("qemu-x86_64", "-cpu", processor, foreign("x86_64-linux-musl")).splitlines() == printed
