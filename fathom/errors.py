"""Every error Fathom raises on purpose.

    FathomError
    ├── SpecError          a spec or recipe field is unknown, out of range, or contradicts another
    │   └── SpecErrors     several fields of one file are wrong
    ├── DataError          a source, document, shard or tokenizer cannot be used
    │   ├── SourceError    a source is missing, unreachable or has the wrong hash
    │   └── ShardError     a token shard is cut short or fails its checksum
    ├── CheckpointError    a checkpoint is missing, incomplete, or of another shape
    ├── TrainError         a training step cannot continue (loss or gradient not finite)
    ├── RewardError        a reward fails at every answer that it is asked about first
    ├── ContextError       a prompt does not fit the model's context
    │   └── TooManyTokens  a text has more tokens than the caller takes; they were not all read
    ├── BusyError          the engine takes no request now; the same one may be sent again later
    │   ├── QueueFull      as many requests wait as may
    │   └── Draining       the engine is being closed
    ├── EngineError        the engine can run none of its requests, or its thread ended
    └── ResourceError      disk or memory ran out; nothing published was lost

    BaseException
    └── Interrupted        SIGINT or SIGTERM arrived; the state was saved first

A message names the field, the value and the remedy on one line. The command line prints it and exits with 2
(130 for ``Interrupted``). ``Interrupted`` is no ``Exception``, as ``KeyboardInterrupt`` is none: code that treats any
exception as the failure of one request, reward or answer must not treat the end of the process so.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Self

from fathom.terminal import one_line, visible

_LONGEST_PROBLEM, _LONGEST_REASON = 1000, 200


def shortened(text: str, most: int = _LONGEST_PROBLEM) -> str:
    """Return a text as one line of a message: what is quoted from a file may be of any length and any characters."""
    line = one_line(text[: 4 * most])
    if len(line) <= most and len(text) <= 4 * most:
        return line
    return f"{line[: most - 40]} ... ({len(text)} characters)"


def reason_of(error: BaseException) -> str:
    """Return what another library's error says as a short line, or the name of its type where it says nothing."""
    return shortened(str(error), _LONGEST_REASON) or type(error).__name__


class FathomError(Exception):
    """Base of all errors that a user can act on; control characters in the names that a message quotes are shown.

    ``changes`` are fields of the training spec, and values with which a resume would go on: the remedy as data.
    """

    changes: Mapping[str, object] = MappingProxyType({})

    def with_changes(self, **fields: object) -> Self:
        """Return this error with ``changes``; ``__`` in a name stands for a dot."""
        self.changes = {name.replace("__", "."): value for name, value in fields.items()}
        return self

    def __str__(self) -> str:
        return visible(super().__str__())


class SpecError(FathomError, ValueError):
    """A field of a spec or recipe is wrong.

    ``path`` locates the field from the root of what was read, e.g. ``steps[3].optimizer.lr``. ``alone`` says that the
    value is wrong whatever the other fields are. ``example`` is a line of TOML that is right, where one is known.
    """

    def __init__(self, path: str, problem: str, remedy: str, *, alone: bool = False, example: str = "") -> None:
        path, problem, remedy = shortened(path), shortened(problem), shortened(remedy)
        self.path = path
        self.problem = problem
        self.remedy = remedy
        self.alone = alone
        self.example = example
        super().__init__(f"{path}: {problem}; {remedy}" if path else f"{problem}; {remedy}")

    @property
    def faults(self) -> tuple[SpecError, ...]:
        """The errors of single fields that this one stands for: itself, unless it is of several."""
        return (self,)

    def under(self, parent: str) -> SpecError:
        """Return the same error located below ``parent``."""
        joined = f"{parent}.{self.path}" if self.path and not self.path.startswith("[") else parent + self.path
        return self.at(joined)

    def in_file(self, name: str) -> SpecError:
        """Return the same error with the name of the file that the field is in."""
        return self.at(f"{name}: {self.path}" if self.path else name)

    def at(self, path: str) -> SpecError:
        """Return the same error located at ``path``."""
        moved = type(self)(path, self.problem, self.remedy)
        moved.alone, moved.example = self.alone, self.example
        return moved


class SpecErrors(SpecError):
    """Several fields of one file are wrong; the message has a block of lines, two for each."""

    def __init__(self, name: str, faults: Sequence[SpecError]) -> None:
        self._faults = tuple(faults)
        super().__init__(name, f"{len(self._faults)} faults", "correct them")
        lines = [f"{self.path}: {self.problem}:" if self.path else f"{self.problem}:"]
        for fault in self._faults:
            lines.append(f"  {one_line(str(fault))}")
            if fault.example:
                lines.append(f"      e.g. {shortened(fault.example, _LONGEST_REASON)}")
        self.args = ("\n".join(lines),)

    @property
    def faults(self) -> tuple[SpecError, ...]:
        """The errors of single fields."""
        return self._faults

    def at(self, path: str) -> SpecError:
        """Return the same errors as those of the file at ``path``."""
        return SpecErrors(path, self._faults)


class DataError(FathomError):
    """A source, document, shard or tokenizer cannot be used."""


class SourceError(DataError):
    """A source is missing, unreachable, or not what its manifest says."""


class ShardError(DataError):
    """A token shard on disk is cut short or fails its checksum."""


class CheckpointError(FathomError):
    """A checkpoint is missing, incomplete, damaged, or of another shape."""


class TrainError(FathomError):
    """A training step cannot continue; the state before the step is intact."""


class RewardError(FathomError):
    """A reward fails at every answer that it is asked about first: nothing can be learned from it."""


class ContextError(FathomError, ValueError):
    """A prompt, or a prompt with its answer, does not fit the model's context."""


class TooManyTokens(ContextError):
    """A text has more tokens than the caller takes: about ``tokens``, of which only the first were read."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        super().__init__(f"text: its about {tokens} tokens are more than are taken; shorten it")


class BusyError(FathomError):
    """The engine takes no request now; nothing is wrong with the request."""


class QueueFull(BusyError):
    """As many requests wait as may; ``waiting`` says how many."""

    def __init__(self, waiting: int, limit: int) -> None:
        self.waiting = waiting
        super().__init__(f"requests: {waiting} wait already, of at most {limit}; send it again later")


class Draining(BusyError):
    """The engine is being closed: requests under way end, new ones are refused."""

    def __init__(self) -> None:
        super().__init__("requests: refused while the engine closes; send it to another, or again after a restart")


class EngineError(FathomError):
    """The engine can run none of its requests, or its thread ended: a fault of Fathom, not of a request."""


class ResourceError(FathomError):
    """Disk or memory ran out; whatever was published before is intact."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; the state was saved before this was raised."""


_CHOOSE = "choose another folder"
_EXPLANATIONS = {
    "ENOSPC": "the disk is full; free disk space or choose another disk",
    "EDQUOT": "the disk quota is used up; free disk space, have the quota raised or choose another disk",
    "EFBIG": "the file exceeds a size limit (ulimit -f, or the file system's); raise it or choose another disk",
    "EACCES": f"permission is denied; change the permissions or {_CHOOSE}",
    "EPERM": f"the operation is not permitted; change the owner or the permissions, or {_CHOOSE}",
    "EROFS": f"the file system is read-only; {_CHOOSE}",
    "ENOENT": "there is no such file or folder; check the path",
    "ENOTDIR": f"a part of the path is a file and no folder; {_CHOOSE}",
    "EISDIR": "it is a folder; name a file",
    "EEXIST": "it exists already; remove it or choose another name",
    "ENOTEMPTY": "the folder is not empty; remove it or choose another name",
    "ENAMETOOLONG": "the name is too long; choose a shorter one",
    "ELOOP": "the symbolic links of the path form a loop; correct them",
    "EMFILE": "the process has too many files open; raise the limit (ulimit -n)",
    "ENFILE": "the system has too many files open; close other programs or raise the limit (fs.file-max)",
    "EBUSY": "it is in use; close the program that uses it",
    "EIO": "the device reports an input/output error; check the disk or choose another one",
    "ESTALE": "the network file system lost the file; mount it again",
    "ENXIO": "the device is gone; check the disk or choose another one",
    "ENODEV": "the device is gone; check the disk or choose another one",
}
_BY_NUMBER = {getattr(errno, name): text for name, text in _EXPLANATIONS.items() if hasattr(errno, name)}

ENVIRONMENT_ERRORS = frozenset(
    getattr(errno, name, None)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "ENAMETOOLONG"),
        *("EMFILE", "ENFILE", "EIO", "ESTALE", "ENXIO", "ENODEV"),
    )
) - {None}
"""What the file system or its limits refuse; any other ``OSError`` may be a fault of the program."""


def explain_os_error(error: OSError) -> str:
    """Return the cause of an ``OSError`` with its remedy, e.g. "the disk is full; free disk space or ...".

    An error whose number has no explanation is quoted.
    """
    if error.errno in _BY_NUMBER:
        return _BY_NUMBER[error.errno]
    reason = " ".join((error.strerror or str(error) or type(error).__name__).split())
    return f"{reason}; check the path and its disk"
