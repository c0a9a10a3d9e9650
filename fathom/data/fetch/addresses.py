"""Addresses of indexes and files, and how messages show them: without credentials and control characters."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import SplitResult, urlsplit
from urllib.request import url2pathname

from fathom.errors import shortened

Origin = tuple[str, str, int]
"""Scheme, host and port: what credentials belong to."""

_LONGEST_SHOWN = 200
_PORTS = {"http": 80, "https": 443}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")


def scheme_of(address: str) -> str:
    """Return the scheme of an address in lower case; an empty text for a path, one of Windows included."""
    found = _SCHEME.match(address)
    return found.group(1).lower() if found else ""


def shown(address: str) -> str:
    """Return an address as messages show it: without user, password, query and fragment."""
    scheme, parts = scheme_of(address), web_parts(address)
    if parts is not None:
        address = f"{scheme}://{host_of(parts)}{'' if '@' in parts.path else parts.path}"
    elif not address.startswith("file:///") and (scheme or "@" in address):
        # no sound address: a password may hold any character
        address = re.split("[?#]", address.rpartition("@")[2])[0]
    return shortened(address, _LONGEST_SHOWN)


def host_of(parts: SplitResult) -> str:
    """Return host and port as they are written, without user and password."""
    return parts.netloc.rpartition("@")[2]


def web_parts(address: str) -> SplitResult | None:
    """Return the parts of an http or https address with a host and a sound port; None for anything else."""
    try:
        parts = urlsplit(address)
        if parts.scheme in _PORTS and parts.hostname and (parts.port is None or parts.port > 0):
            return parts
    except ValueError:
        pass
    return None


def origin_of(parts: SplitResult) -> Origin:
    """Return scheme, host and port of an http or https address."""
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0)


def local_path(address: str) -> Path | None:
    """Return the file that a path or a file: address names; None for another machine's."""
    if scheme_of(address) != "file":
        return Path(address).expanduser()
    parts = urlsplit(address)
    return Path(url2pathname(parts.path)) if parts.netloc in ("", "localhost") else None
