"""Messages that a program sends to its tests: damaged values, containers and replies, read as the tests read them."""

from __future__ import annotations

import json
import os
import random
import threading
from typing import Any

from fathom.posttrain.verdicts.peer import Peer, PeerLost
from fathom.posttrain.verdicts.plain_values import MALFORMED, ValueDecoder, ValueEncoder
from fathom.posttrain.verdicts.shared import SharedContainers
from tests.fuzz.driver import Target
from tests.fuzz.json_damage import damage
from tests.posttrain.verdicts.test_plain_values import draw

_TAGS = (*"irtfbcgl.?uDFwaMToenEkh", "keys", "values", "items")
_WORDS = ("1e999999999", "-0x" + "f" * 9000, "Infinity", "sNaN", "AAAA", "=", "\ud800", "1/3", "SystemExit", "builtins")


def _refuse(*_: Any) -> Any:
    raise ValueError("not plain")


class PlainValues(Target):
    """An input is [value, table] as a message holds them; one that is read is written again, and read the same."""

    name = "plain_values"
    suffix = ".json"
    short_executions = 1500
    memory_bytes = 256 * 2**20

    def make(self, rng: random.Random) -> bytes:
        return json.dumps(_damaged(_written(rng), rng)).encode()

    def check(self, data: bytes) -> None:
        try:
            value, table = json.loads(data)
            read = ValueDecoder(_refuse, table, SharedContainers(1)).value(value)
        except MALFORMED as error:
            self.refusals[type(error).__name__] += 1
            return
        encoder = ValueEncoder(_refuse, SharedContainers(0))
        try:
            again = [encoder.value(read), encoder.table()]
        except ValueError as error:  # nested too deeply for the way back
            self.refusals[type(error).__name__] += 1
            return
        ValueDecoder(_refuse, again[1], SharedContainers(1)).value(again[0])


class Replies(Target):
    """An input is what a program sends back to a request of its tests: one message, or several."""

    name = "verdict_replies"
    suffix = ".json"
    short_executions = 300
    memory_bytes = 256 * 2**20

    def make(self, rng: random.Random) -> bytes:
        messages = []
        for number in range(rng.choice((1, 1, 2, 3))):
            value, table = _written(rng)
            if rng.random() < 0.2:
                value = rng.choice((["E", "KeyError", value], ["h", 1, 2], ["k", 3], ["n", "math", "sin"], ["o", 0]))
            reply = {"n": number + 1, rng.choice("vvvx"): value, "t": table}
            asks = {"n": 1, "f": rng.choice(("special", "getattr", "describe", "plain", "x")), "a": [value], "k": {}}
            messages.append(_damaged(rng.choice((reply, reply, reply, asks | {"d": [], "t": table})), rng))
        return json.dumps(messages).encode()

    def check(self, data: bytes) -> None:
        messages = [json.dumps(each).encode() for each in json.loads(data)]
        sent = b"".join(len(each).to_bytes(4, "big") + each for each in messages)
        reading, program = os.pipe()
        answers, writing = os.pipe()
        threads = [
            threading.Thread(target=_send, args=(program, sent)),
            threading.Thread(target=_drain, args=(answers,)),
        ]
        for thread in threads:
            thread.start()
        peer = Peer(reading, writing, strict=True, may=lambda function, arguments: function != "setattr")
        try:
            peer.request("names")
        except PeerLost as error:
            self.refusals[f"PeerLost {str(error)[:20]}"] += 1
        except BaseException:
            if b'"x"' not in data:  # else what the program's function raised
                raise
            self.refusals["raised"] += 1
        finally:
            os.close(reading)
            os.close(writing)
            for thread in threads:
                thread.join()
            os.close(answers)


def _send(descriptor: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _drain(descriptor: int) -> None:
    while os.read(descriptor, 1 << 16):
        pass


def _written(rng: random.Random) -> list[Any]:
    encoder = ValueEncoder(_refuse, SharedContainers(0))
    value = encoder.value(draw(rng, rng.choice((1, 2, 3))))
    return [value, encoder.table()]


def _damaged(message: Any, rng: random.Random) -> Any:
    """Return a message whose values, tags and numbers may be others."""
    message = json.loads(json.dumps(message))
    if rng.random() < 0.8:
        message = damage(message, rng)
    for _ in range(rng.choice((0, 1, 2))):
        lists = _lists(message)
        if lists:
            inner = rng.choice(lists)
            place = rng.randrange(len(inner))
            inner[place] = rng.choice((rng.choice(_TAGS), rng.choice(_WORDS), rng.choice((0, 1, 2, 3, 10**7, 2**64))))
    return message


def _lists(value: Any) -> list[list[Any]]:
    found, waiting = [], [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, list) and inner:
            found.append(inner)
        waiting += inner if isinstance(inner, list) else list(inner.values()) if isinstance(inner, dict) else []
    return found


TARGETS = (PlainValues, Replies)
