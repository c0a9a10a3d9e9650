"""What goes through the pipes between a judge and its reward processes: JSON behind its length in 4 bytes."""

from __future__ import annotations

import json
import os
import selectors
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fathom.posttrain.rewards.base import RewardInput, Score, StepScore
from fathom.spec.mapping import from_mapping, to_mapping
from fathom.spec.problem import Problem
from fathom.spec.rewards import RewardSpec

_LENGTH = struct.Struct(">I")
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The first message to a process: which reward it is, its limits, and what it may do.

    ``code_folders`` come before the process's own path where it imports a function.
    """

    reward: RewardSpec
    seconds: float
    memory_mib: int
    code_folders: tuple[str, ...] = ()
    unsandboxed: bool = False


def frame_message(message: Any) -> bytes:
    """A message as it goes through a pipe; lone surrogates survive."""
    body = json.dumps(message).encode()
    return _LENGTH.pack(len(body)) + body


def encode(answers: Sequence[RewardInput]) -> dict[str, Any]:
    """Answers as JSON, each problem once."""
    places: dict[int, int] = {}
    problems: list[Any] = []
    rows: list[Any] = []
    for answered in answers:
        key = id(answered.problem)
        if key not in places:
            places[key] = len(problems)
            problems.append(to_mapping(answered.problem))
        rows.append([answered.prompt, answered.answer, places[key], answered.finished])
    return {"problems": problems, "answers": rows}


def decode(message: Mapping[str, Any]) -> list[RewardInput]:
    """What ``encode`` was given."""
    problems = [from_mapping(Problem, problem) for problem in message["problems"]]
    return [
        RewardInput(prompt=prompt, answer=answer, problem=problems[place], finished=finished)
        for prompt, answer, place, finished in message["answers"]
    ]


def encode_score(score: Score) -> list[Any]:
    """A score as JSON."""
    return [score.value, score.failure, [[step.end, step.value] for step in score.steps]]


def decode_score(message: Sequence[Any]) -> Score:
    """What ``encode_score`` was given."""
    value, failure, steps = message
    return Score(value, failure, tuple(StepScore(end, worth) for end, worth in steps))


class MessageReader:
    """Takes messages out of a pipe."""

    def __init__(self, fd: int, *, max_bytes: int = (1 << 32) - 1) -> None:
        self._fd = fd
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def read(self, seconds: float | None = None) -> Any:
        """Return the next message.

        Raises:
            EOFError: the other side is gone, or wrote something else than a message.
            TimeoutError: nothing whole came in ``seconds``.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        head = self._take(_LENGTH.size, deadline)
        (size,) = _LENGTH.unpack(head)
        if size > self._max_bytes:
            raise EOFError
        try:
            return json.loads(self._take(size, deadline))
        except ValueError:
            raise EOFError from None

    def _take(self, size: int, deadline: float | None) -> bytes:
        while len(self._buffer) < size:
            self._wait(deadline)
            piece = os.read(self._fd, _PIECE)
            if not piece:
                raise EOFError
            self._buffer += piece
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _wait(self, deadline: float | None) -> None:
        if deadline is None:
            return
        with selectors.DefaultSelector() as selector:
            selector.register(self._fd, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
