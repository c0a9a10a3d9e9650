"""The process that renders chat templates, as seen from this one: started when needed, replaced when it ends.

Templates come with models and are programs of strangers: they may loop, allocate or look for a way out of jinja's
sandbox. They run in an isolated Python without torch, environment or files (``template_worker``), of which there is
one for each process that renders.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fathom.chat.template_worker import READY, ran_out_of_memory
from fathom.errors import DataError, ResourceError
from fathom.files import sha256
from fathom.isolated import bare_environment, bare_python, package_folder

MEMORY_MIB = 512
SECONDS = 0.4
SECONDS_PER_MIB = 0.25
"""Processor time of a rendering: so much, and more for long conversations."""
WALL_SECONDS = 20.0 if sys.platform != "win32" else 2.0
"""Time a request may take by the clock; where the system cannot limit processor time, the only limit."""
MAX_TEMPLATE_CHARS = 1_048_576
_START_SECONDS = 60.0
Mark = tuple[str, str, str]
_WORKER = Path(__file__).with_name("template_worker.py")
_REMEDY = "use another template"
_KILLED: Any = object()
"""The answer of a process that was ended from outside."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """A rendered text, or why there is none: ``limit`` says that a limit was met."""

    text: str | None
    problem: str = ""
    limit: bool = False

    def unwrap(self, name: str) -> str:
        """Return the text; ``DataError`` names the template where there is none."""
        if self.text is None:
            raise DataError(f"{name}: {self.problem}")
        return self.text


class TemplateProcess:
    """Renders in a process of its own. Thread-safe; a process forked from this one starts its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(
        self,
        template: str,
        variables: Sequence[Mapping[str, Any]],
        *,
        max_chars: int,
        mark: Mark | None = None,
    ) -> list[Rendering]:
        """Render a template with each set of variables; after one that met a limit, there may be fewer.

        ``mark`` is (characters, mark, scope): the mark is put after these characters in the template's literals, "all"
        of them or those of its "output".

        Raises:
            DataError: the template is too long, or the variables cannot be written as JSON.
            ResourceError: the process cannot be started.
        """
        if len(template) > MAX_TEMPLATE_CHARS:
            raise DataError(f"chat template: {len(template)} characters exceed {MAX_TEMPLATE_CHARS}; use a shorter one")
        try:
            given = json.dumps(list(variables), default=_placeholder)
            name = sha256(template.encode("utf-8", "surrogatepass"))
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"messages: cannot be passed to a template ({error}); give plain JSON values") from None
        seconds = SECONDS + SECONDS_PER_MIB * len(given) / len(variables) / 2**20
        head = json.dumps({"hash": name, "max_chars": max_chars, "seconds": seconds, "mark": mark})[:-1]
        request = f'{head}, "variables": {given}}}'
        with self._lock:
            answer = self._ask(request, seconds)
            if isinstance(answer, dict):
                answer = self._ask(f'{request[:-1]}, "source": {json.dumps(template)}}}', seconds)
        return [_rendering(one, seconds) for one in answer]

    def close(self) -> None:
        """End the process, if there is one; the next rendering starts another."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """Let go of a process that belongs to the process this one was forked from."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            _close_pipes(process)
            process.returncode = 0  # it is not this process's child: nothing to wait for

    def _ask(self, request: str, seconds: float) -> Any:
        """Send a request and read the answer; what ended the process counts as the answer."""
        data = request.encode()
        message = len(data).to_bytes(4, "big") + data
        for _ in range(2):
            process = self._started()
            try:
                try:
                    _write(process, message)
                    answer = self._answer(process, WALL_SECONDS + seconds)
                except OSError:
                    answer = _KILLED
                if answer is not _KILLED:
                    return answer
                self._end()  # from outside, perhaps while it had nothing to do
            except BaseException:  # an interrupted request leaves an answer nobody reads
                self._end()
                raise
        return [{"error": ["crash", "killed twice"]}]

    def _answer(self, process: subprocess.Popen[bytes], seconds: float) -> Any:
        try:
            reader = _Reader(process, seconds)
            answer = json.loads(reader.read(int.from_bytes(reader.read(4), "big")))
            if ran_out_of_memory(answer):
                self._end()
            return answer
        except TimeoutError:
            self._end()
            return [{"error": ["clock", f"{seconds:.3g} s"]}]
        except EOFError:
            try:
                code = process.wait(1.0)
            except subprocess.TimeoutExpired:
                code = 0
            self._end()
            if -code in _KILL_SIGNALS:
                return _KILLED
            return [{"error": ["time" if -code in _TIME_SIGNALS else "crash", f"status {code}"]}]

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            folders = sorted(set(map(package_folder, ("jinja2", "markupsafe"))))
            try:
                self._process = subprocess.Popen(
                    bare_python(_WORKER, str(MEMORY_MIB << 20), *folders),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    bufsize=0,
                    env=bare_environment(),
                    start_new_session=True,
                )
                _Reader(self._process, _START_SECONDS).read(len(READY))
            except (OSError, EOFError) as error:
                self._end()
                reason = str(error) or "it ended at once"
                raise ResourceError(
                    f"chat template: its process cannot be started ({reason}); free memory or install jinja2 anew"
                ) from None
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        _close_pipes(process)


class _Reader:
    """Reads an answer until a deadline."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        assert process.stdout is not None
        self._process = process
        self._pipe: IO[bytes] = process.stdout
        self._deadline = time.monotonic() + seconds

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._some(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def _some(self, most: int) -> bytes:
        left = max(self._deadline - time.monotonic(), 0.0)
        if sys.platform == "win32":  # pipes cannot be waited for there
            timer = threading.Timer(left, self._process.kill)
            timer.daemon = True
            timer.start()
            try:
                data = os.read(self._pipe.fileno(), most)
            finally:
                timer.cancel()
            if not data and time.monotonic() >= self._deadline:
                raise TimeoutError
            return data
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        if not poll.poll(left * 1000):
            raise TimeoutError
        return os.read(self._pipe.fileno(), most)


def _write(process: subprocess.Popen[bytes], message: bytes) -> None:
    assert process.stdin is not None
    data = memoryview(message)
    while data:
        data = data[process.stdin.write(data) :]


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def _placeholder(value: Any) -> str:
    """Name the type of what is no JSON value, such as an image: templates look at whether it is there only."""
    return f"<{type(value).__name__}>"


def _rendering(answer: Mapping[str, Any], seconds: float) -> Rendering:
    if "text" in answer:
        return Rendering(answer["text"])
    kind, message = answer["error"][0], answer["error"][1].rstrip(".")
    limits = {
        "time": f"takes over {seconds:.2g} s of processor time; {_REMEDY} or shorten the messages",
        "clock": f"gives no text within {message}; {_REMEDY} or retry when the machine is less busy",
        "memory": f"takes over {MEMORY_MIB} MiB of memory; {_REMEDY} or shorten the messages",
        "output": f"output exceeds {message.removeprefix('more than ')}; {_REMEDY} or shorten the messages",
        "crash": f"ends the process that renders it ({message}); {_REMEDY}",
        "recursion": f"{message}; {_REMEDY}",
    }
    if kind in limits:
        return Rendering(None, limits[kind], limit=True)
    if kind == "TemplateError":
        return Rendering(None, f"{message}; fix the messages")
    return Rendering(None, f"{kind}: {message}; fix the template or the messages")


if sys.platform == "win32":
    _TIME_SIGNALS: frozenset[int] = frozenset()
    _KILL_SIGNALS: frozenset[int] = frozenset()
else:
    import signal

    _TIME_SIGNALS = frozenset({int(signal.SIGPROF), int(signal.SIGVTALRM), int(signal.SIGXCPU)})
    _KILL_SIGNALS = frozenset({int(signal.SIGKILL), int(signal.SIGTERM)})

PROCESS = TemplateProcess()
"""The one of this process."""
atexit.register(PROCESS.close)
if sys.platform != "win32":
    os.register_at_fork(after_in_child=PROCESS.forget)
