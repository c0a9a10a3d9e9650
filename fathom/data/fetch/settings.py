"""Where packages are looked for, as pip is configured: read from its files and variables, since pip may be missing."""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fathom.errors import SourceError

DEFAULT_INDEX = "https://pypi.org/simple"
_FILE = "pip.ini" if sys.platform == "win32" else "pip.conf"
_SECTIONS = ("global", "download")
_SAME = {"i": "index-url", "pypi-url": "index-url", "f": "find-links", "default-timeout": "timeout"}
_TRUE = ("1", "on", "t", "true", "y", "yes")
_FALSE = ("0", "off", "f", "false", "n", "no")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """Where archives are looked for, and how; the defaults are pip's own.

    ``indexes`` are asked for a package's page (PEP 503 or 691), ``find_links`` are folders, or pages that list files:
    addresses or paths. Either may hold a user and password, which are sent to that host only and never shown.
    ``timeout`` is in seconds for one answer of the network, ``retries`` counts further attempts.
    """

    indexes: tuple[str, ...] = field(default=(DEFAULT_INDEX,), repr=False)
    find_links: tuple[str, ...] = field(default=(), repr=False)
    proxy: str | None = field(default=None, repr=False)
    cert: str | None = None
    client_cert: str | None = None
    timeout: float = 15.0
    retries: int = 5
    trusted_hosts: tuple[str, ...] = ()
    netrc: Path | None = None


def read_settings(environment: Mapping[str, str] | None = None) -> IndexSettings:
    """Return what pip's configuration files and ``PIP_*`` variables say, in pip's order of precedence.

    Sections ``[global]`` and ``[download]`` count. ``REQUESTS_CA_BUNDLE``, ``CURL_CA_BUNDLE`` and ``NETRC`` are read
    as pip reads them; a value is taken as it stands, and names of variables in it are not replaced.

    Raises:
        SourceError: a file cannot be read, or a value is of the wrong kind.
    """
    given = os.environ if environment is None else environment
    options = _options(given)
    index = options.get("index-url", DEFAULT_INDEX)
    indexes = () if _switch(options, "no-index") else (index, *options.get("extra-index-url", "").split())
    return IndexSettings(
        indexes=indexes,
        find_links=tuple(options.get("find-links", "").split()),
        proxy=options.get("proxy"),
        cert=options.get("cert") or given.get("REQUESTS_CA_BUNDLE") or given.get("CURL_CA_BUNDLE"),
        client_cert=options.get("client-cert"),
        timeout=_number(options, "timeout", 15.0, least=0.001),
        retries=int(_number(options, "retries", 5, least=0)),
        trusted_hosts=tuple(options.get("trusted-host", "").split()),
        netrc=_netrc(given),
    )


def configuration_files(environment: Mapping[str, str]) -> Iterator[Path]:
    """Yield the files that pip reads, those that override others last; most of them need not exist."""
    chosen = environment.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return
    yield from (folder / _FILE for folder in _global_folders(environment))
    if not (chosen and Path(chosen).exists()):
        home = Path(os.path.expanduser("~"))
        yield home / ("pip" if sys.platform == "win32" else ".pip") / _FILE
        yield _user_folder(environment, home) / _FILE
    yield Path(sys.prefix) / _FILE
    if chosen:
        yield Path(chosen)


def _global_folders(environment: Mapping[str, str]) -> list[Path]:
    if sys.platform == "win32":
        return [Path(environment.get("PROGRAMDATA", "C:\\ProgramData"), "pip")]
    if sys.platform == "darwin":
        return [Path("/Library/Application Support/pip")]
    folders = (environment.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)
    return [*(Path(folder, "pip") for folder in folders if folder), Path("/etc")]


def _user_folder(environment: Mapping[str, str], home: Path) -> Path:
    if sys.platform == "win32":
        return Path(environment.get("APPDATA") or home / "AppData" / "Roaming", "pip")
    own = home / "Library" / "Application Support" / "pip"
    if sys.platform == "darwin" and own.is_dir():
        return own
    return Path(environment.get("XDG_CONFIG_HOME") or home / ".config", "pip")


def _options(environment: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for path in configuration_files(environment):
        for section, values in _read(path).items():
            found[section].update(values)
    variables = {
        name.removeprefix("PIP_"): value for name, value in environment.items() if name.startswith("PIP_") and value
    }
    options: dict[str, str] = {}
    for values in (*found.values(), variables):
        for name, value in values.items():
            name = name.lower().replace("_", "-").removeprefix("--")
            options[_SAME.get(name, name)] = value.strip()
    return {name: value for name, value in options.items() if value}


def _read(path: Path) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser()
    try:
        with path.open(encoding="utf-8") as file:
            parser.read_file(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, configparser.Error) as error:
        # the text of a parser's error quotes the line, which may hold a password
        raise SourceError(
            f"{path}: pip's settings cannot be read ({type(error).__name__}); correct that file"
        ) from None
    return {section: dict(parser.items(section)) for section in _SECTIONS if parser.has_section(section)}


def _switch(options: Mapping[str, str], name: str) -> bool:
    value = options.get(name, "0")
    if value.lower() not in (*_TRUE, *_FALSE):
        raise SourceError(f"pip's {name}: {value[:40]!r} is neither true nor false; correct pip's settings")
    return value.lower() in _TRUE


def _number(options: Mapping[str, str], name: str, default: float, *, least: float) -> float:
    value = options.get(name)
    try:
        number = default if value is None else float(value)
    except ValueError:
        number = -1.0
    if not least <= number <= 86_400:
        raise SourceError(
            f"pip's {name}: {(value or '')[:40]!r} is no number {'above 0' if least else 'of 0 or more'}; "
            "correct pip's settings"
        )
    return number


def _netrc(environment: Mapping[str, str]) -> Path | None:
    chosen = environment.get("NETRC")
    home = Path(os.path.expanduser("~"))
    files = [Path(chosen)] if chosen else [home / ".netrc", home / "_netrc"]
    return next((file for file in files if file.is_file()), None)
