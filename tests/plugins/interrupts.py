"""Ctrl-C reaches the programs that tests start, however the tests themselves were started.

A shell starts what it runs in the background with SIGINT ignored, and every process below inherits that.
"""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
