"""The system calls a sandboxed program is refused, as a seccomp filter for bubblewrap.

Refused are new namespaces (they come with rights of their own), mounts, tracing, kernel keys, kernel interfaces with a
history of holes, and every socket but local ones: some kinds, as AF_VSOCK, are not of a network namespace.
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, little-endian
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_CLONE_NEWUSER = 0x10000000
_AF_UNIX = 1
_X32 = 0x40000000
_SHARED = (
    425,
    428,
    429,
    430,
    431,
    432,
    433,
    442,
)  # io_uring_setup, open_tree .. fspick, mount_setattr: same everywhere
_CLONE3 = 435


@dataclass(frozen=True, slots=True)
class _SyscallTable:
    """Linux's numbers on one machine; ``refused`` stands in the order unshare, setns, mount, pivot_root, ptrace,
    process_vm_readv, process_vm_writev, add_key, request_key, keyctl, bpf, perf_event_open, userfaultfd."""

    audit: int
    clone: int
    socket: int
    refused: tuple[int, ...]


_MACHINES = {
    "x86_64": _SyscallTable(0xC000003E, 56, 41, (272, 308, 165, 155, 101, 310, 311, 248, 249, 250, 321, 298, 323)),
    "aarch64": _SyscallTable(0xC00000B7, 220, 198, (97, 268, 40, 41, 117, 270, 271, 217, 218, 219, 280, 241, 282)),
}


def seccomp_filter() -> bytes | None:
    """The filter for this machine; None where its numbers are not known."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return None
    return _assembled(
        [
            (_LOAD, _ARCHITECTURE, "", ""),
            (_EQUAL, machine.audit, "", "refuse"),
            (_LOAD, _NUMBER, "", ""),
            (_AT_LEAST, _X32, "refuse", ""),
            *((_EQUAL, number, "refuse", "") for number in (*machine.refused, *_SHARED)),
            (_EQUAL, _CLONE3, "missing", ""),  # its flags cannot be looked at; libraries fall back on clone
            (_EQUAL, machine.clone, "clone", ""),
            (_EQUAL, machine.socket, "socket", "allow"),
        ]
    )


def _assembled(tests: list[tuple[int, int, str, str]]) -> bytes:
    """Assemble tests and the ends they jump to in order; an empty label falls through to the next instruction."""
    ends = [
        ("socket", (_LOAD, _FIRST_ARGUMENT, "", "")),
        ("", (_EQUAL, _AF_UNIX, "allow", "refuse")),
        ("clone", (_LOAD, _FIRST_ARGUMENT, "", "")),
        ("", (_ANY_BIT, _CLONE_NEWUSER, "refuse", "allow")),
        ("allow", (_RETURN, _ALLOW, "", "")),
        ("refuse", (_RETURN, _FAIL | errno.EPERM, "", "")),
        ("missing", (_RETURN, _FAIL | errno.ENOSYS, "", "")),
    ]
    program = [*tests, *(instruction for _, instruction in ends)]
    places = {label: len(tests) + index for index, (label, _) in enumerate(ends) if label}
    code = b""
    for here, (operation, operand, then, otherwise) in enumerate(program):
        jumps = [places[label] - here - 1 if label else 0 for label in (then, otherwise)]
        code += struct.pack("=HBBI", operation, *jumps, operand)
    return code
