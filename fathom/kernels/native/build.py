"""Compile ``csrc/`` into the shared library beside this file; a script of the standard library alone.

``python fathom/kernels/native/build.py`` builds for this machine with $CC, the system's C compiler or the ``ziglang``
package, whichever is found first. The installation runs the same code. Each instruction set's kernels are compiled with
their own flags; a compiler that does not know some leaves that set out.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "csrc"
LIBRARY = HERE / "libfathom_native.so"
NOT_BUILT = HERE / "not_built.txt"  # why there is no library; written by the installation
ZIG = (sys.executable, "-m", "ziglang", "cc")
ZIG_REQUIREMENT = "ziglang>=0.13"

_COMMON = ("-std=gnu11", "-fPIC", "-pthread", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra")
_OPTIMIZED = ("-O3", "-ffp-contract=fast", "-g0")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")
# Flags of *_NAME.c by processor. Nothing goes here that csrc/cpu.c does not ask the processor for.
_INSTRUCTION_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {"avx2": _AVX2, "avxvnni": (*_AVX2, "-mavxvnni"), "avx512": _AVX512},
    "aarch64": {"neon": ("-march=armv8.2-a+dotprod",)},
}
_ZIG_FLAGS = {"neon": ("-mcpu=generic+v8_2a+dotprod",)}  # its -march= takes names of processors
_PROCESSORS = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


class BuildError(Exception):
    """The library cannot be built here; the message is one line."""


def source_hash() -> str:
    """Return a hash of the sources and of this file, which the library carries: an older one is not loaded."""
    digest = hashlib.sha256()
    for path in (*sorted(SOURCES.glob("*.[ch]")), Path(__file__)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def is_current(library: Path = LIBRARY) -> bool:
    """Return whether the library is there and was built from these sources."""
    return library.exists() and source_hash().encode() in library.read_bytes()


def is_usable(library: Path = LIBRARY) -> bool:
    """Return whether the library is current and loads here: a checkout may have come from another machine."""
    try:
        return is_current(library) and bool(ctypes.CDLL(str(library)))
    except OSError:
        return False


def missing_requirements() -> list[str]:
    """Return the package that brings a compiler, where one is needed and this machine has none."""
    if switched_off():
        return []
    try:
        instruction_sets("")
    except BuildError:
        return []
    try:
        find_compiler()
    except BuildError:
        return [ZIG_REQUIREMENT]
    return []


def switched_off() -> bool:
    """Return whether the environment says that nothing is to be built."""
    return os.environ.get("FATHOM_NATIVE", "").strip() == "0"


def find_compiler() -> list[str]:
    """Return the command of a C compiler that links: $CC, the system's, or that of the ``ziglang`` package.

    Raises:
        BuildError: there is none, or $CC does not work.
    """
    if chosen := os.environ.get("CC", "").strip():
        _try_to_link(shlex.split(chosen))
        return shlex.split(chosen)
    failures = []
    for command in _candidates():
        try:
            _try_to_link(command)
        except BuildError as error:
            failures.append(str(error))
        else:
            return command
    raise BuildError(failures[0] if failures else "no C compiler: neither $CC, cc, gcc nor clang, nor package ziglang")


def _candidates() -> Iterator[list[str]]:
    system = [_xcode_compiler()] if sys.platform == "darwin" else map(shutil.which, ("cc", "gcc", "clang"))
    yield from ([path] for path in system if path)
    if importlib.util.find_spec("ziglang"):
        yield list(ZIG)


def _try_to_link(command: list[str]) -> None:
    """Check that a compiler has the C library's headers too: some images have a compiler without them."""
    with tempfile.TemporaryDirectory(prefix="fathom-native-") as folder:
        source = Path(folder, "empty.c")
        source.write_text("#include <pthread.h>\n#include <math.h>\nint fathom_empty(void) { return 0; }\n")
        _run(
            [*command, *native_flags(command), "-shared", "-fPIC", "-pthread", "-o", f"{folder}/empty.so", str(source)]
        )


def native_flags(command: Sequence[str]) -> tuple[str, ...]:
    """Return what makes a compiler build for any processor of this kind: zig would build for this very one."""
    name = _PROCESSORS.get(platform.machine().lower(), platform.machine())
    if not _is_zig(command):
        return ("-arch", "arm64" if name == "aarch64" else name) if sys.platform == "darwin" else ()
    if sys.platform == "darwin":
        return ("-target", f"{name}-macos")
    return ("-target", f"{name}-linux-{'gnu.2.17' if platform.libc_ver()[0] == 'glibc' else 'musl'}")


def _is_zig(command: Sequence[str]) -> bool:
    return tuple(command[1:3]) == ZIG[1:3]


def _xcode_compiler() -> str | None:
    """Ask xcrun: without the developer tools /usr/bin/cc is a stub that opens a dialog."""
    try:
        answer = subprocess.run(["xcrun", "--find", "clang"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def build(
    output: Path = LIBRARY,
    *,
    compiler: Sequence[str] = (),
    target: str = "",
    sanitize: str = "",
    program: Path | None = None,
    jobs: int = 0,
) -> None:
    """Compile the sources and put the library in its place at once.

    Args:
        output: where to write it.
        compiler: its command; by default the one that ``find_compiler`` finds.
        target: a triple that the compiler takes as ``-target`` (zig and clang), to build for another machine.
        sanitize: what to check at run time, such as "address,undefined", for tests.
        program: a C file with a ``main``, to link a program and no library; static where there is a target.
        jobs: compilers that run at a time; as many as processors by default.

    Raises:
        BuildError: no compiler, a processor or system without kernels, or the first line of what failed.
    """
    sets = instruction_sets(target)
    command = [*(compiler or find_compiler())]
    sets |= {name: flags for name, flags in _ZIG_FLAGS.items() if _is_zig(command) and name in sets}
    command += ("-target", target) if target else native_flags(command)
    command += (*_COMMON, *(_sanitized(sanitize) if sanitize else _OPTIMIZED))
    with tempfile.TemporaryDirectory(prefix="fathom-native-") as folder:
        work = Path(folder)
        known = {name: flags for name, flags in sets.items() if _accepts(command, flags, work)}
        if target and known != sets:
            raise BuildError(f"{command[0]} does not know the flags of {', '.join(sets.keys() - known.keys())}")
        shared = [f'-DFATHOM_SOURCES="{source_hash()}"', *(f"-DFATHOM_WITH_{name.upper()}" for name in known)]
        sources = [path for path in sorted(SOURCES.glob("*.c")) if _wanted(path, known)] + (
            [program] if program else []
        )
        with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
            objects = list(pool.map(lambda path: _compile(command, shared, path, known, work), sources))
        linked = work / output.name
        kind = ["-static"] if program and target else [] if program else ["-shared"]
        kind += [] if sanitize else ["-Wl,-S"]  # without debug information, of zig's own parts too
        _run([*command, *kind, "-o", str(linked), *map(str, objects), "-lm"])
        _publish(linked, output)


def _sanitized(checks: str) -> tuple[str, ...]:
    return "-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={checks}", "-fno-sanitize-recover=all"


def _publish(linked: Path, output: Path) -> None:
    """Replace the output at once: another process may be loading it."""
    beside = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        shutil.copyfile(linked, beside)
        beside.chmod(0o755)
        os.replace(beside, output)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise BuildError(f"{output} cannot be written: {error.strerror}") from None


def instruction_sets(target: str) -> dict[str, tuple[str, ...]]:
    """Return the flags of the instruction sets of a target, or of this machine; ``BuildError`` where there are none."""
    name = target.split("-")[0] if target else platform.machine().lower()
    system = target or sys.platform
    if "windows" in system or system == "win32":
        raise BuildError("the native library is not built on Windows")
    if name not in _PROCESSORS:
        raise BuildError(f"the native library has no kernels for the processor {name or 'of this machine'}")
    return dict(_INSTRUCTION_SETS[_PROCESSORS[name]])


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
    built = work / f"{source.parent.name}-{source.stem}.o"
    flags = known.get(_instruction_set(source), ())
    _run([*command, f"-I{SOURCES}", *shared, *flags, "-c", str(source), "-o", str(built)])
    return built


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be started: {error.strerror}") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message")
        raise BuildError(f"{command[0]} failed with status {done.returncode}: {reason[:300]}")
    if done.stderr.strip() and os.environ.get("FATHOM_BUILD_WARNINGS"):
        sys.stderr.write(done.stderr)


def main() -> int:
    """Build as the arguments say; return the exit status."""
    parser = argparse.ArgumentParser(description="Build Fathom's native CPU library.")
    parser.add_argument("--output", type=Path, default=LIBRARY, metavar="FILE", help="the library")
    parser.add_argument("--target", default="", help="a triple for zig or clang, such as aarch64-linux-gnu.2.17")
    parser.add_argument("--sanitize", default="", metavar="CHECKS", help="such as address,undefined, for tests")
    parser.add_argument("--if-needed", action="store_true", help="do nothing where it is built from these sources")
    given = parser.parse_args()
    if given.if_needed and (switched_off() or is_usable(given.output)):
        return 0
    try:
        build(given.output, target=given.target, sanitize=given.sanitize)
    except BuildError as error:
        print(f"not built: {error}", file=sys.stderr)
        return 1
    print(given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
