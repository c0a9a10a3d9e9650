"""The judge's side of one reward: start its process, ask it, and replace it when it hangs or dies."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from fathom.errors import ResourceError
from fathom.isolated import isolated_python, minimal_environment
from fathom.posttrain.rewards.base import TIMED_OUT, RewardInput, Score
from fathom.posttrain.rewards.wire import MessageReader, Setup, decode_score, encode, frame_message
from fathom.spec.mapping import to_mapping
from fathom.spec.rewards import FunctionReward

_START_SECONDS = 120.0
_MAX_REPLY_BYTES = 1 << 16
_BATCH_ANSWERS = 256
_BATCH_CHARS = 4_000_000
_PROGRAM = "from fathom.posttrain.rewards.worker import main; main()"


class RewardWorkerClient:
    """One reward in a process of its own, started when first asked.

    An answer that takes longer than ``setup.seconds`` or ends the process scores 0, and a new process takes the next.
    The process may use ``setup.memory_mib`` of address space. It imports nothing from the working directory and has no
    environment, but where the reward is a function of the user's own: that gets both. Used by one thread at a time.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._running: tuple[subprocess.Popen[bytes], MessageReader] | None = None

    def start(self) -> None:
        """Start the process if it does not run: it imports what it needs.

        Raises:
            ResourceError: as ``score``.
        """
        if self._running is None:
            self._started()

    def score(self, answers: Sequence[RewardInput]) -> list[Score]:
        """Score every answer, in order.

        Raises:
            ResourceError: the process cannot do its work at all: its target, a library or the sandbox is missing.
        """
        scores: list[Score] = []
        while len(scores) < len(answers):
            scores += self._some(_batch(answers, len(scores)))
        return scores

    def close(self) -> None:
        """End the process and everything it holds."""
        if self._running is None:
            return
        process, _ = self._running
        self._running = None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # what was not written yet
                continue

    def _some(self, answers: Sequence[RewardInput]) -> list[Score]:
        """Score as many as one process can: all of them, or up to the one that made it hang or die."""
        reader = self._send(answers)
        scores: list[Score] = []
        try:
            for _ in answers:
                scores.append(decode_score(self._check_reply(reader.read(self._setup.seconds))))
        except TimeoutError:
            self.close()
            scores.append(Score(0.0, TIMED_OUT))
        except EOFError:
            scores.append(Score(0.0, f"crashed: {self._end()}"))
        return scores

    def _send(self, answers: Sequence[RewardInput]) -> MessageReader:
        """Hand answers to a process that is ready for them; one that died meanwhile is replaced once."""
        for reader in self._readers():
            assert self._running is not None
            stdin = self._running[0].stdin
            assert stdin is not None
            try:
                stdin.write(frame_message(encode(answers)))
                stdin.flush()
                self._check_reply(reader.read(_START_SECONDS))
                return reader
            except (BrokenPipeError, EOFError):
                why = self._end()
            except TimeoutError:
                self.close()
                why = f"it was not ready after {_START_SECONDS:g} s"
        raise ResourceError(f"{self._name}: its process cannot be used ({why}); fix the reward or leave it out")

    def _readers(self) -> Iterator[MessageReader]:
        if self._running is not None:
            yield self._running[1]
        yield self._started()

    def _started(self) -> MessageReader:
        process = subprocess.Popen(
            isolated_python(_PROGRAM),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=None if isinstance(self._setup.reward, FunctionReward) else minimal_environment(),
            start_new_session=True,  # signals to the process group must not count as answers that crashed a reward
        )
        assert process.stdin is not None
        assert process.stdout is not None
        reader = MessageReader(process.stdout.fileno(), max_bytes=_MAX_REPLY_BYTES)
        self._running = process, reader
        try:
            process.stdin.write(frame_message(to_mapping(self._setup)))
            process.stdin.flush()
            self._check_reply(reader.read(_START_SECONDS))
        except (BrokenPipeError, EOFError):
            raise ResourceError(f"{self._name}: its process did not start ({self._end()}); fix the reward") from None
        except TimeoutError:
            self.close()
            raise ResourceError(f"{self._name}: its process took over {_START_SECONDS:g} s to start") from None
        return reader

    def _check_reply(self, message: Any) -> Any:
        """Pass a message on unless it says that the process cannot work."""
        if isinstance(message, dict) and "error" in message:
            self.close()
            raise ResourceError(f"{self._name}: {message['error']}")
        return message

    def _end(self) -> str:
        """Close a process that has ended by itself and say how."""
        assert self._running is not None
        process = self._running[0]
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.close()
            return "closed its pipe"
        self.close()
        code = process.returncode
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    @property
    def _name(self) -> str:
        return f"reward {self._setup.reward.name}"


def _batch(answers: Sequence[RewardInput], start: int) -> list[RewardInput]:
    """The next few answers, never so many that a message grows large."""
    batch: list[RewardInput] = []
    chars = 0
    for answered in answers[start : start + _BATCH_ANSWERS]:
        batch.append(answered)
        chars += len(answered.answer) + len(answered.prompt)
        if chars > _BATCH_CHARS:
            break
    return batch
