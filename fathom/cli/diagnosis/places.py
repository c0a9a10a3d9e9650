"""Caches and disks, the sandbox for programs, and the console's encoding."""

from __future__ import annotations

import locale
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fathom.cli import options
from fathom.cli.diagnosis.finding import Finding
from fathom.errors import FathomError, explain_os_error
from fathom.extras import install_extra
from fathom.progress import size

_LEAST_DISK = 1 << 30
_SECONDS = 0.3
"""Time to measure one cache."""


def place_findings() -> Iterator[Finding]:
    """Yield findings about caches, disks, the sandbox and the console."""
    yield sandbox_finding()
    yield cache_finding("Fathom's cache", options.cache_directory(), "FATHOM_CACHE")
    yield cache_finding("Hugging Face's cache", hub_cache(), "HF_HUB_CACHE")
    yield disk_finding("working directory", Path.cwd())
    yield from console_findings()


def hub_cache() -> Path:
    """Return where huggingface_hub keeps models, by its own rules: HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME."""
    own = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{base}/huggingface").expanduser() / "hub"


def cache_finding(name: str, path: Path, variable: str) -> Finding:
    """Say where a cache is, how much it holds, and whether it can be written; nothing is created."""
    where = _existing(path)
    elsewhere = f"set {variable} to a folder that can be"
    if not where.is_dir():
        return Finding("places", name, f"{path}: {where} is no folder", "broken", elsewhere)
    try:
        with tempfile.TemporaryFile(dir=where):
            pass
    except OSError as error:
        reason = explain_os_error(error)
        return Finding("places", name, f"{path}: cannot be written, {reason}", "broken", elsewhere)
    held, whole = measured(path)
    shown = f"{path}: {'' if whole else 'over '}{size(held)}" if path.exists() else f"{path}: not made yet"
    return disk_finding(name, where, shown, f"free some, or set {variable} to a folder on another disk")


def disk_finding(
    name: str, where: Path, shown: str = "", remedy: str = "free some, or work on another disk"
) -> Finding:
    """Say how much space a folder's disk has left; nearly none is a fault."""
    free = shutil.disk_usage(where).free
    value = f"{shown or where}, {size(free)} free"
    if free < _LEAST_DISK:
        return Finding("places", name, f"{value}: the disk is nearly full", "broken", remedy)
    return Finding("places", name, value)


def measured(path: Path, seconds: float = _SECONDS) -> tuple[int, bool]:
    """Return the bytes of a folder's files, links not followed, and whether there was time to count all."""
    total, deadline = 0, time.monotonic() + seconds
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                status = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
        if time.monotonic() > deadline:
            return total, False
    return total, True


def sandbox_finding() -> Finding:
    """Say whether programs that a model wrote can be run apart from this machine."""
    brings = "programs as rewards and in evaluation"
    if sys.platform != "linux":
        return Finding("machine", "sandbox", "none on this platform", "missing", f"{brings}: use Linux, or WSL")
    try:
        from fathom.posttrain.sandbox import find_bubblewrap, run_program

        program = find_bubblewrap()
    except FathomError:
        remedy = f"{brings}: {install_extra('rl')}, or apt install bubblewrap"
        return Finding("machine", "sandbox", "bubblewrap is not installed", "missing", remedy)
    except ImportError as error:
        return Finding("machine", "sandbox", f"cannot be loaded ({error})", "broken", install_extra("rl"))
    try:
        ended = run_program("print(1)")
    except (FathomError, OSError) as error:
        return Finding("machine", "sandbox", f"{program}: {_line(error)}", "missing", f"{brings}: {_allow()}")
    if not ended.passed:
        reason = _line(ended.stderr) or ended.reason
        return Finding("machine", "sandbox", f"{program}: {reason}", "missing", f"{brings}: {_allow()}")
    return Finding("machine", "sandbox", f"{program}, works; all processes together bounded by {_bound()}")


def console_findings() -> Iterator[Finding]:
    """Yield the encodings that text passes through."""
    encoding = (sys.stdout.encoding if sys.stdout is not None else None) or "none"
    shown = f"stdout {encoding}, files {sys.getfilesystemencoding()}, locale {locale.getpreferredencoding(False)}"
    if encoding.lower().replace("-", "").replace("_", "") != "utf8":
        remedy = "characters that it does not have: set PYTHONUTF8=1 and a UTF-8 locale (on Windows: chcp 65001)"
        yield Finding("places", "console", shown, "missing", remedy)
    else:
        yield Finding("places", "console", shown)


def _existing(path: Path) -> Path:
    """Return a path, or its nearest ancestor that exists."""
    found = path.absolute()
    while not found.exists() and found != found.parent:
        found = found.parent
    return found


def _line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:200] if lines else ""


def _bound() -> str:
    from fathom.posttrain.sandbox.cgroup import usable_parents

    usable = usable_parents()
    return "a watch over what they use (no control group can be made)" if usable is None else f"cgroup v{usable[1]}"


def _allow() -> str:
    return "allow user namespaces (sysctl -w kernel.unprivileged_userns_clone=1, or the container's seccomp profile)"
