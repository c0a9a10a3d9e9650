"""Compile ``csrc/`` into the shared library beside this file; a script of the standard library alone.

``python fathom/kernels/native/build.py`` builds for this machine with $CC, the system's C compiler or the ``ziglang``
package, whichever is found first. The installation runs the same code. Each instruction set's kernels are compiled with
their own flags; a compiler that does not know some leaves that set out.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "csrc"
LIBRARY = HERE / "libfathom_native.so"

_COMMON = ("-std=gnu11", "-fPIC", "-pthread", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra")
_OPTIMIZED = ("-O3", "-ffp-contract=fast")
_SANITIZED = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")
# Flags of *_NAME.c by processor. Nothing goes here that csrc/cpu.c does not ask the processor for.
_INSTRUCTION_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {"avx2": _AVX2, "avxvnni": (*_AVX2, "-mavxvnni"), "avx512": _AVX512},
    "aarch64": {"neon": ("-march=armv8.2-a+dotprod",)},
}
_PROCESSORS = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


class BuildError(Exception):
    """The library cannot be built here; the message is one line."""


def source_hash() -> str:
    """Return a hash of the sources and of this file, which the library carries: an older one is not loaded."""
    digest = hashlib.sha256()
    for path in (*sorted(SOURCES.glob("*.[ch]")), Path(__file__)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def find_compiler() -> list[str]:
    """Return the command of a C compiler: $CC, the system's, or that of the ``ziglang`` package."""
    if chosen := os.environ.get("CC", "").strip():
        return shlex.split(chosen)
    found = _xcode_compiler() if sys.platform == "darwin" else _first_on_path()
    if found:
        return [found]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    raise BuildError("no C compiler: neither $CC, cc, gcc nor clang, and no ziglang package")


def _first_on_path() -> str | None:
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def _xcode_compiler() -> str | None:
    """Ask xcrun: without the developer tools /usr/bin/cc is a stub that opens a dialog."""
    try:
        answer = subprocess.run(["xcrun", "--find", "clang"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def build(
    library: Path = LIBRARY, *, compiler: Sequence[str] = (), target: str = "", sanitize: bool = False, jobs: int = 0
) -> None:
    """Compile the sources and put the library in its place at once.

    Args:
        library: where to write it.
        compiler: its command; by default the one that ``find_compiler`` finds.
        target: a triple that the compiler takes as ``-target`` (zig and clang), to build for another machine.
        sanitize: check addresses and undefined behaviour, for tests.
        jobs: compilers that run at a time; as many as processors by default.

    Raises:
        BuildError: no compiler, a processor or system without kernels, or the first line of what failed.
    """
    command = [*(compiler or find_compiler()), *(("-target", target) if target else ())]
    sets = _instruction_sets(target)
    with tempfile.TemporaryDirectory(prefix="fathom-native-") as folder:
        command += [*_COMMON, *(_SANITIZED if sanitize else _OPTIMIZED)]
        work = Path(folder)
        known = {name: flags for name, flags in sets.items() if _accepts(command, flags, work)}
        shared = [f'-DFATHOM_SOURCES="{source_hash()}"', *(f"-DFATHOM_WITH_{name.upper()}" for name in known)]
        sources = [path for path in sorted(SOURCES.glob("*.c")) if _wanted(path, known)]
        with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
            objects = list(pool.map(lambda path: _compile(command, shared, path, known, work), sources))
        linked = work / library.name
        _run([*command, "-shared", "-o", str(linked), *map(str, objects), "-lm"])
        beside = library.with_name(f".{library.name}.{os.getpid()}")
        shutil.copyfile(linked, beside)
        beside.chmod(0o755)
        os.replace(beside, library)


def _instruction_sets(target: str) -> dict[str, tuple[str, ...]]:
    name = target.split("-")[0] if target else platform.machine().lower()
    system = target or sys.platform
    if "windows" in system or system == "win32":
        raise BuildError("the native library is not built on Windows")
    if name not in _PROCESSORS:
        raise BuildError(f"the native library has no kernels for the processor {name or 'of this machine'}")
    return _INSTRUCTION_SETS[_PROCESSORS[name]]


def _wanted(path: Path, known: dict[str, tuple[str, ...]]) -> bool:
    name = _instruction_set(path)
    return name in known or not any(name in sets for sets in _INSTRUCTION_SETS.values())


def _instruction_set(path: Path) -> str:
    return path.stem.rpartition("_")[2]


def _accepts(command: list[str], flags: tuple[str, ...], work: Path) -> bool:
    empty = work / "empty.c"
    empty.write_text("int fathom_empty;\n")
    try:
        _run([*command, "-Werror", *flags, "-c", str(empty), "-o", str(work / "empty.o")])
    except BuildError:
        return False
    return True


def _compile(
    command: list[str], shared: list[str], source: Path, known: dict[str, tuple[str, ...]], work: Path
) -> Path:
    built = work / f"{source.stem}.o"
    flags = known.get(_instruction_set(source), ())
    _run([*command, *shared, *flags, "-c", str(source), "-o", str(built)])
    return built


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be started: {error.strerror}") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message")
        raise BuildError(f"{' '.join(command[:1])} failed with status {done.returncode}: {reason[:300]}")
    if done.stderr.strip() and os.environ.get("FATHOM_BUILD_WARNINGS"):
        sys.stderr.write(done.stderr)


def main() -> int:
    """Build as the arguments say; return the exit status."""
    parser = argparse.ArgumentParser(description="Build Fathom's native CPU library.")
    parser.add_argument("--output", type=Path, default=LIBRARY, metavar="FILE")
    parser.add_argument("--target", default="", help="a triple for zig or clang, such as aarch64-linux-gnu.2.17")
    parser.add_argument("--sanitize", action="store_true", help="check addresses and undefined behaviour, for tests")
    given = parser.parse_args()
    try:
        build(given.output, target=given.target, sanitize=given.sanitize)
    except BuildError as error:
        print(f"not built: {error}", file=sys.stderr)
        return 1
    print(given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
