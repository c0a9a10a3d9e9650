"""The access log: one line for each request at its end, without any of the prompt, the answer or a key."""

from __future__ import annotations

import json
import logging
import logging.handlers
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from fathom.errors import DataError, SpecError
from fathom.logs import RecordFormatter

AccessLog = Literal["text", "json", "off"]
access_logger = logging.getLogger("fathom.serve.access")
_LONGEST_PATH = 200
_LONGEST_CLIENT = 64
_LEADING = ("time", "client", "key", "method", "path", "status")
_UNSAFE = re.compile(r"[^!-~]")


def check_access_log(value: str) -> None:
    """Raise ``SpecError`` where a form of the log is not known."""
    if value not in get_args(AccessLog):
        raise SpecError("access_log", f"{value[:80]!r} is no form of the log", "give text, json or off")


def log_request(form: AccessLog, facts: Callable[[], Mapping[str, Any]]) -> None:
    """Write the line of a request that has ended now; ``facts`` is called where one is written."""
    if form != "off":
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": time, **facts()}
        access_logger.info("%s", json.dumps(line) if form == "json" else _text(line))


def shown_path(raw: bytes) -> str:
    """Return a request's path as it was sent, cut short; nobody is meant to put a prompt into it."""
    return _UNSAFE.sub("?", raw[:_LONGEST_PATH].decode("latin-1"))


def shown_client(address: str) -> str:
    """Return a client's address, which a proxy may have got from the client itself."""
    return _UNSAFE.sub("?", address[:_LONGEST_CLIENT])


def log_to(path: Path) -> None:
    """Write the access log to a file, appending; where the file is renamed, as by logrotate, a new one is begun.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        handler = logging.handlers.WatchedFileHandler(path, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"--access-log-file: {path} cannot be written ({reason}); check the path") from None
    handler.setFormatter(RecordFormatter())
    access_logger.addHandler(handler)
    access_logger.propagate = False


def _text(line: Mapping[str, Any]) -> str:
    """Return a line for people: what every request has in columns, and the rest by name."""
    columns = [_word(line.get(name, "-")) for name in _LEADING]
    return " ".join([*columns, *(f"{name}={_word(value)}" for name, value in line.items() if name not in _LEADING)])


def _word(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if not text or _UNSAFE.search(text) or '"' in text else text
