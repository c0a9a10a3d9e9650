"""The system calls a sandboxed program may make, as a seccomp filter for bubblewrap; every other fails.

Left out is what reaches beyond the sandbox (mounts, tracing, kernel keys, sockets but local ones, new namespaces,
which come with rights of their own), and what holds memory that no process's size shows: shared memory and message
queues of System V and POSIX, memfd, huge pages, larger pipes and socket buffers, io_uring, userfaultfd.
"""

from __future__ import annotations

import errno
import functools
import platform
import struct

from fathom.errors import ResourceError
from fathom.posttrain.sandbox.syscalls import ALLOWED, CHECKED, MACHINES

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data, little-endian
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000

_NEW_NAMESPACE = 0x7E020000  # CLONE_NEW*
_MAP_HUGETLB = 0x40000
_AF_UNIX = 1
_BUFFER_SIZES = (7, 8, 32, 33)  # SO_SNDBUF, SO_RCVBUF and their FORCE
_FCNTL = (*range(8), 36, 37, 38, 1030, 1032)  # descriptors, flags, locks, F_GETPIPE_SZ
_IOCTL = (
    0x5401,
    0x5413,
    0x541B,
    0x5421,
    0x5450,
    0x5451,
    0x802C542A,
)  # is it a terminal, FIONREAD, FIONBIO, FIOCLEX
_PRCTL = (1, 15, 16)  # PR_SET_PDEATHSIG, PR_SET_NAME, PR_GET_NAME

_Instruction = tuple[int, int, int, int]
"""Operation, instructions to skip where it holds and where not, operand."""


def seccomp_filter(machine: str | None = None) -> bytes:
    """The filter for ``machine``, by default this one.

    Raises:
        ResourceError: its system calls are not known.
    """
    return _filter(machine or platform.machine())


@functools.cache
def _filter(machine: str) -> bytes:
    if machine not in MACHINES:
        raise ResourceError(
            f"sandbox: the system calls of {machine} are not known, so that programs cannot be kept from any; use "
            f"{' or '.join(MACHINES)}, or add --unsandboxed on a machine made to be thrown away"
        )
    column = list(MACHINES).index(machine)
    rules = {number: [_allow()] for numbers in ALLOWED.values() if (number := numbers[column]) is not None}
    rules |= {CHECKED[name][column]: checks for name, checks in _CHECKS.items()}
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, MACHINES[machine]),
        _fail(errno.ENOSYS),
        (_LOAD, 0, 0, _NUMBER),
        *_search(_intervals(rules)),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _intervals(rules: dict[int, list[_Instruction]]) -> list[tuple[int, list[_Instruction]]]:
    """The first number of every interval of system calls that are dealt with alike, and how, in order."""
    found: list[tuple[int, list[_Instruction]]] = []
    for number in range(max(rules) + 2):
        rule = rules.get(number, [_fail(errno.ENOSYS)])
        if not found or found[-1][1] != rule:
            found.append((number, rule))
    return found


def _search(intervals: list[tuple[int, list[_Instruction]]]) -> list[_Instruction]:
    """A binary search for the interval of a number: the kernel runs a new filter for every call that there is."""
    if len(intervals) == 1:
        return intervals[0][1]
    middle = len(intervals) // 2
    below, above = _search(intervals[:middle]), _search(intervals[middle:])
    return [(_AT_LEAST, len(below), 0, intervals[middle][0]), *below, *above]


def _allow() -> _Instruction:
    return (_RETURN, 0, 0, _ALLOW)


def _fail(error: int) -> _Instruction:
    return (_RETURN, 0, 0, _FAIL | error)


def _one_of(argument: int, values: tuple[int, ...], error: int) -> list[_Instruction]:
    """Allow a call whose 32-bit argument is among ``values``."""
    tests = [(_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
    return [_load(argument), *tests, _fail(error), _allow()]


def _none_of(argument: int, values: tuple[int, ...], error: int) -> list[_Instruction]:
    """Allow a call whose 32-bit argument is not among ``values``."""
    tests = [(_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
    return [_load(argument), *tests, _allow(), _fail(error)]


def _no_bit(argument: int, bits: int, error: int) -> list[_Instruction]:
    """Allow a call whose argument has none of some low 32 bits."""
    return [_load(argument), (_ANY_BIT, 0, 1, bits), _fail(error), _allow()]


def _load(argument: int) -> _Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)


_CHECKS = {
    "clone": _no_bit(0, _NEW_NAMESPACE, errno.EPERM),
    "clone3": [_fail(errno.ENOSYS)],  # its flags cannot be looked at; libraries fall back on clone
    "socket": _one_of(0, (_AF_UNIX,), errno.EPERM),
    "socketpair": _one_of(0, (_AF_UNIX,), errno.EPERM),
    "setsockopt": _none_of(2, _BUFFER_SIZES, errno.EPERM),
    "fcntl": _one_of(1, _FCNTL, errno.EPERM),
    "ioctl": _one_of(1, _IOCTL, errno.ENOTTY),
    "prctl": _one_of(0, _PRCTL, errno.EPERM),
    "mmap": _no_bit(3, _MAP_HUGETLB, errno.ENOMEM),
}
