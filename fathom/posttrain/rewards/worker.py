"""The process of one reward: reads answers from one pipe, writes a score for each into another, until the first ends.

It imports no torch; ``posttrain/rewards/worker_client.py`` starts it. A scorer may hang, crash or print: descriptors 0
and 1 are not the pipes any more when it runs, and an alarm of the kernel ends a scorer that hangs even where the
process that should is gone.
"""

from __future__ import annotations

import math
import numbers
import os
import resource
import signal
import traceback
from typing import Any

from fathom.errors import FathomError
from fathom.posttrain.rewards.base import RewardInput, Score, Scorer, score_from_steps
from fathom.posttrain.rewards.scorers import make_scorer
from fathom.posttrain.rewards.wire import MessageReader, Setup, decode, encode_score, frame_message
from fathom.spec.mapping import from_mapping
from fathom.spec.rewards import scores_steps

READY = {"ready": True}
_REASON_CHARS = 300
_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep


def main() -> None:
    """Serve until standard input ends."""
    inward, outward = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nothing, fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the judge decides when this ends
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads would reserve the memory that is limited here
    try:
        _serve(MessageReader(inward), outward)
    except (EOFError, BrokenPipeError):
        return


def _serve(reader: MessageReader, outward: int) -> None:
    setup = from_mapping(Setup, reader.read())
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (setup.memory_mib << 20, hard))
    try:
        scorer = make_scorer(setup)
        _write(outward, READY)
        while True:
            answers = decode(reader.read())
            scorer.prepare(answers)
            _write(outward, READY)
            for answered in answers:
                signal.setitimer(signal.ITIMER_REAL, 2 * setup.seconds + 1)
                score = _scored(scorer, answered, stepwise=scores_steps(setup.reward))
                signal.setitimer(signal.ITIMER_REAL, 0)
                _write(outward, encode_score(score))
    except FathomError as error:
        _write(outward, {"error": str(error)})


def _scored(scorer: Scorer, answered: RewardInput, *, stepwise: bool) -> Score:
    """What a scorer says, or why it says nothing of use."""
    try:
        value: Any = scorer.score(answered)
    except BaseException as error:  # SystemExit too: a reward that ends its process is a reward that crashed
        return Score(0.0, f"crashed: {type(error).__name__}: {_reason(error)}{_place(error)}")
    if value is None:
        return Score(None)
    if stepwise:
        return score_from_steps(value, len(answered.answer))
    if not isinstance(value, numbers.Real):
        return Score(0.0, f"crashed: returned {type(value).__name__}, not a number")
    return Score(float(value)) if math.isfinite(value) else Score(0.0, "not finite")


def _reason(error: BaseException) -> str:
    """Return what an exception says as one line; even that may raise."""
    try:
        return " ".join(str(error).split())[:_REASON_CHARS]
    except BaseException:
        return "its text cannot be read"


def _place(error: BaseException) -> str:
    """Return the last line outside Fathom that an exception passed, in parentheses; "" where there is none."""
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    outside = [(file, line) for file, line in places if not file.startswith(_PACKAGE)]
    return f" ({os.path.basename(outside[-1][0])[:_REASON_CHARS]}, line {outside[-1][1]})" if outside else ""


def _write(fd: int, message: Any) -> None:
    data = frame_message(message)
    while data:
        data = data[os.write(fd, data) :]
