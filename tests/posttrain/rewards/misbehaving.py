"""Rewards that do what a reward must not do; imported by reward processes only."""

import ctypes
import os
import signal
import sys
import time
from typing import Any


def behave(prompt: str, answer: str, reference: str) -> Any:
    match answer:
        case "hang":
            time.sleep(1000)
        case "hang in C":
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
            ctypes.CDLL(None).sleep(1000)
        case "raise":
            raise ValueError("no\nreward")
        case "exit":
            sys.exit(0)
        case "leave":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case "memory":
            return float(len(bytearray(1 << 40)))
        case "print":
            print("noise " * 1000, flush=True)
            os.write(1, b"\xff" * 10_000)
            return 0.5
        case "nan":
            return float("nan")
        case "inf":
            return float("-inf")
        case "text":
            return "1.0"
        case "nothing":
            return None
        case "whole":
            return 1
        case "echo":
            return float(prompt == "p\ud800" and reference == "r")
    return 0.25


def process_id(prompt: str, answer: str, reference: str) -> float:
    if answer == "hang":
        time.sleep(1000)
    return float(os.getpid())


def holds_torch(prompt: str, answer: str, reference: str) -> float:
    return float("torch" in sys.modules)


def steps(prompt: str, answer: str, reference: str) -> Any:
    found: dict[str, Any] = {
        "two": [(3, 0.5), (1, -1)],
        "none": [],
        "nothing": None,
        "number": 1.0,
        "outside": [(8, 1.0)],
        "text": [("1", 1.0)],
    }
    return found[answer]


not_callable = 3
