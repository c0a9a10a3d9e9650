"""Assigning questions to the training or held-out split; the splits are disjoint by construction.

Each split draws from its own seeds, and a question is held out when the hash of its task and text says so, whatever
it was drawn from: generated problems of the other split are skipped. So no held-out question can be met in
training, even where a task has few different questions.
"""

from __future__ import annotations

import json

from fathom.files import sha256

_HELD_OUT_ONE_IN = 10
_SEED_BYTES = 7


def held_out(task: str, question: str) -> bool:
    """Whether a question of a task falls in the held-out tenth; the same on every machine, for ever."""
    return _number("question", task, question) % _HELD_OUT_ONE_IN == 0


def held_out_group(task: str, group: str, *, one_in: int) -> bool:
    """Whether a whole group of questions, such as the instances of a template, is held out: one group in ``one_in``."""
    return _number("group", task, group) % one_in == 0


def derived_seed(*parts: str | int) -> int:
    """Return a seed below 2**56 that depends on all parts and their order."""
    return _number("seed", *parts)


def _number(*parts: str | int) -> int:
    spelled = json.dumps([str(part) for part in parts])
    return int(sha256(spelled)[: 2 * _SEED_BYTES], 16)
