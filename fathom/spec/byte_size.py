"""Sizes in bytes as people write them: 4GiB, 500M, 2.5 GB, 1048576."""

from __future__ import annotations

import re
from decimal import Decimal

from fathom.errors import SpecError

_SIZE = re.compile(r"(?P<number>\d{1,18}(\.\d{1,9})?)\s*(?P<unit>[kmgt]?)(?P<binary>i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_byte_size(field: str, text: str) -> int:
    """Return a size in bytes: K, M, G and T count in thousands, as in llama.cpp, and KiB, MiB, GiB and TiB in 1024s.

    Raises:
        SpecError: it is no size, or none above 0; the message names ``field``.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or (found["binary"] and not found["unit"]):
        raise SpecError(field, f"{text!r} is no size in bytes", "write it as 4GiB, 4G (in thousands) or 500M")
    nbytes = int(Decimal(found["number"]) * (1024 if found["binary"] else 1000) ** _POWERS[found["unit"].lower()])
    if nbytes < 1:
        raise SpecError(field, f"{text!r} is less than a byte", "give a size above 0, such as 4GiB")
    return nbytes
