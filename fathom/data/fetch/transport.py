"""GET requests to package indexes: proxies, certificates, redirects and credentials, each host its own."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import netrc
import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from fathom.data.fetch.addresses import Origin, host_of, origin_of, shown, web_parts
from fathom.data.fetch.settings import IndexSettings
from fathom.errors import reason_of, shortened

T = TypeVar("T")
_REDIRECTS = 10
_REDIRECT_STATUSES = (301, 302, 303, 307, 308)
_TRANSIENT_STATUSES = (408, 429, 500, 502, 503, 504, 520, 524, 527)
_PAUSE = 0.25
_MOST_WAIT = 30.0
_IN_PATHS = "%/:@!$&'()*+,;=~-._"


class TransportError(Exception):
    """Nothing usable came from an address; the text says why and what to do, and holds no credentials.

    ``transient``: a further attempt may succeed, after ``wait`` seconds where the server names some.
    """

    def __init__(self, message: str, *, transient: bool = False, wait: float = 0.0, status: int | None = None) -> None:
        super().__init__(message)
        self.transient, self.wait, self.status = transient, wait, status


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer whose body is still to be read."""

    url: str
    response: http.client.HTTPResponse

    def header(self, name: str) -> str:
        """Return a header's value, or an empty text."""
        return self.response.getheader(name) or ""

    def read(self, most: int) -> bytes:
        """Return up to ``most`` bytes of the body as they come; none at its end."""
        try:
            return self.response.read1(most)
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(self.url, error) from None


def attempt(action: Callable[[], T], retries: int) -> T:
    """Call ``action`` until it succeeds, again after a growing pause where its failure may pass."""
    for count in range(retries + 1):
        try:
            return action()
        except TransportError as error:
            if not error.transient or count == retries:
                raise
            time.sleep(max(min(_PAUSE * 2**count, 8.0), min(error.wait, _MOST_WAIT)))
    raise AssertionError


class Transport:
    """Opens addresses as ``settings`` say; may be used by several threads."""

    def __init__(self, settings: IndexSettings) -> None:
        self._settings = settings
        self._credentials: dict[Origin, tuple[str, str] | None] = {}
        for address in (*settings.indexes, *settings.find_links):
            parts = web_parts(address)
            if parts is not None:
                own = None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))
                self._credentials[origin_of(parts)] = own or self._credentials.get(origin_of(parts))
        self._contexts = lru_cache(self._make_context)

    def is_secure(self, url: str) -> bool:
        """Whether pip would ask this address: https, a host on this machine, or a trusted one."""
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        if parts.scheme == "https" or host == "localhost" or self._trusts(origin_of(parts)):
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @contextmanager
    def open(self, url: str, headers: Mapping[str, str], *, secure: bool = False) -> Iterator[Answer]:
        """Yield the answer to a GET request, status 200 or 206; redirections are followed, ``secure`` ones only.

        Raises:
            TransportError: no answer, another status, or an address that is not asked.
        """
        for _ in range(_REDIRECTS + 1):
            parts = web_parts(url)
            if parts is None:
                raise TransportError(f"{shown(url)} is no http or https address; correct pip's index settings")
            if secure and not self.is_secure(url):
                raise TransportError(
                    f"{shown(url)} is not secure and therefore not asked, as by pip; "
                    "use https, or name the host in pip's trusted-host"
                )
            connection, answer = self._get(parts, url, headers)
            try:
                location = answer.header("Location")
                if answer.response.status not in _REDIRECT_STATUSES or not location:
                    _check_status(answer)
                    yield answer
                    return
            finally:
                answer.response.close()
                connection.close()
            url = _joined(url, location)
        raise TransportError(f"{shown(url)} redirects more than {_REDIRECTS} times; correct pip's index settings")

    def _get(
        self, parts: SplitResult, url: str, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPConnection, Answer]:
        target = quote(parts.path or "/", safe=_IN_PATHS) + (
            f"?{quote(parts.query, safe=_IN_PATHS + '?')}" if parts.query else ""
        )
        sent = {"User-Agent": "fathom", **headers}
        credentials = self._credentials_for(parts)
        if credentials is not None:
            sent["Authorization"] = _basic(*credentials)
        connection = None
        try:
            connection, via_proxy = self._connect(parts)
            if via_proxy is not None:
                sent |= via_proxy
                target = f"http://{host_of(parts)}{target}"
            connection.request("GET", target, headers=sent)
            return connection, Answer(url, connection.getresponse())
        except (OSError, http.client.HTTPException, ValueError) as error:
            if connection is not None:
                connection.close()
            raise _unreachable(url, error) from None

    def _connect(self, parts: SplitResult) -> tuple[http.client.HTTPConnection, dict[str, str] | None]:
        """Return a connection, and what to send to a proxy that passes plain requests on."""
        _, host, port = origin_of(parts)
        proxy = self._proxy(parts.scheme, host, port)
        timeout = self._settings.timeout
        if proxy is None and parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=timeout), None
        if proxy is None:
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=self._context(parts)), None
        known = {} if proxy.username is None else {"Proxy-Authorization": _basic(*_user(proxy))}
        address = (proxy.hostname or "", proxy.port or 80)
        if parts.scheme == "http":
            return http.client.HTTPConnection(*address, timeout=timeout), known
        tunnel = http.client.HTTPSConnection(*address, timeout=timeout, context=self._context(parts))
        tunnel.set_tunnel(host, port, headers=known)
        return tunnel, None

    def _proxy(self, scheme: str, host: str, port: int) -> SplitResult | None:
        chosen = self._settings.proxy
        if not chosen:
            known = getproxies()
            chosen = known.get(scheme) or known.get("all")
            if not chosen or proxy_bypass(host if ":" in host else f"{host}:{port}"):
                return None
        chosen = chosen if "://" in chosen else f"http://{chosen}"
        try:
            parts = urlsplit(chosen)
            usable = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise TransportError(
                f"the proxy {shown(chosen)} is no http:// address; name one in pip's proxy or in {scheme}_proxy"
            )
        return parts

    def _context(self, parts: SplitResult) -> ssl.SSLContext:
        origin = origin_of(parts)
        return self._contexts(self._trusts(origin), origin in self._credentials)

    def _make_context(self, trusted: bool, known: bool) -> ssl.SSLContext:
        cert, client_cert = self._settings.cert, self._settings.client_cert
        try:
            context = ssl.create_default_context()
            if cert:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.load_verify_locations(**_certificates(cert))
            elif not context.cert_store_stats()["x509_ca"] and not _has_default_folder():
                _load_certifi(context)
            if known and client_cert:
                context.load_cert_chain(client_cert, password="")
        except (OSError, ValueError) as error:
            raise TransportError(
                f"pip's cert or client-cert cannot be used ({reason_of(error)}); correct pip's settings"
            ) from None
        if trusted:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _trusts(self, origin: Origin) -> bool:
        for entry in self._settings.trusted_hosts:
            try:
                parts = urlsplit(f"//{entry}")
                if (parts.hostname or "").lower() == origin[1] and parts.port in (None, origin[2]):
                    return True
            except ValueError:
                continue
        return False

    def _credentials_for(self, parts: SplitResult) -> tuple[str, str] | None:
        """Return what is known for this scheme, host and port; of netrc a host's own entry, for https or an index."""
        origin = origin_of(parts)
        own = self._credentials.get(origin)
        if own is not None or self._settings.netrc is None:
            return own
        if parts.scheme != "https" and origin not in self._credentials:
            return None
        try:
            entry = netrc.netrc(str(self._settings.netrc)).hosts.get(origin[1])
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            return None
        return None if entry is None else (entry[0] or entry[1] or "", entry[2] or "")


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise TransportError(
            f"{shown(url)} redirects to an address that is none; correct pip's index settings"
        ) from None


def _user(parts: SplitResult) -> tuple[str, str]:
    return unquote(parts.username or ""), unquote(parts.password or "")


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _certificates(path: str) -> dict[str, str]:
    return {"capath" if os.path.isdir(path) else "cafile": path}


def _has_default_folder() -> bool:
    return ssl.get_default_verify_paths().capath is not None


def _load_certifi(context: ssl.SSLContext) -> None:
    """Take the certificates of certifi where the system names none, as Python from python.org on macOS."""
    try:
        import certifi
    except ImportError:
        return
    context.load_verify_locations(certifi.where())


def _check_status(answer: Answer) -> None:
    status = answer.response.status
    if status in (200, 206):
        if answer.header("Content-Encoding").lower() not in ("", "identity"):
            raise TransportError(f"{shown(answer.url)} is sent compressed though not asked so; correct the server")
        return
    host = host_of(urlsplit(answer.url))
    if status in (401, 403, 407):
        raise TransportError(
            f"{host} refuses access (status {status}); correct the user and password in pip's settings or netrc",
            status=status,
        )
    if status in _TRANSIENT_STATUSES:
        after = answer.header("Retry-After")
        raise TransportError(
            f"{host} answers with status {status} ({_meaning(status)}); run again later",
            transient=True,
            wait=float(after) if after.isascii() and after.isdigit() else 0.0,
            status=status,
        )
    raise TransportError(
        f"{shown(answer.url)} is answered with status {status} ({_meaning(status)}); check pip's index settings",
        status=status,
    )


def _meaning(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown"


def _unreachable(url: str, error: Exception) -> TransportError:
    host = host_of(urlsplit(url))
    reason = reason_of(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return TransportError(
            f"the certificate of {host} is not accepted ({shortened(error.verify_message)}); "
            "name the file of its authority in pip's cert (PIP_CERT)"
        )
    if "407" in reason and "unnel" in reason:
        return TransportError("the proxy refuses access (status 407); correct its user and password")
    return TransportError(
        f"the package registry {host} does not answer ({reason}); check the network and run again", transient=True
    )
