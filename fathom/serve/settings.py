"""Settings of a server: keys, allowed hosts and limits."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fathom.errors import SpecError
from fathom.serve.api_keys import ApiKey, numbered
from fathom.serve.http.access_log import AccessLog, check_access_log
from fathom.serve.root_path import check_root_path
from fathom.spec import check

MAX_PREPROCESS_THREADS = 256
MOST_CONNECTIONS = 4096
LOOPBACK_NETWORKS = ("127.0.0.0/8", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Upper bounds of one request or of all together; a request beyond one gets an error that names it.

    ``choices`` bounds the choices of one request, prompts times ``n``; ``prompt_logprobs`` the log-probabilities of
    echoed prompts, all of them together. ``prompt_tokens`` None is the model's context.
    ``embedding_inputs`` and ``embedding_tokens`` bound one request's, as OpenAI does.
    ``max_concurrent_requests`` bounds the requests in progress, waiting ones included; ``max_preprocessing`` those
    whose prompts are being prepared by ``preprocess_threads`` threads, each for at most
    ``preprocess_timeout_seconds``, or wait for a thread; ``body_memory_bytes`` what the bodies of all requests in
    progress take, as received and as parsed. At most ``stored_responses`` responses of ``stored_response_bytes``
    together are kept for ``previous_response_id``.

    ``connections`` may be open at once (None: as many as the process may open files for, ``MOST_CONNECTIONS`` at most),
    of which ``connections_per_client`` from one address. A client has ``head_timeout_seconds`` to send the head of a
    request and ``body_timeout_seconds`` to send the rest, after ``head_timeout_seconds`` at
    ``body_bytes_per_second`` on average at least; it must take 64 KiB of a response in every ``write_timeout_seconds``.
    A connection without a request is kept for ``keep_alive_seconds``.
    """

    body_bytes: int = 32 << 20
    body_memory_bytes: int = 1 << 30
    header_bytes: int = 16 << 10
    choices: int = 128
    n: int = 16
    logprobs: int = 20
    prompt_logprobs: int = 1 << 20
    prompt_tokens: int | None = None
    messages: int = 2048
    tools: int = 128
    schema_bytes: int = 64 << 10
    stop_strings: int = 16
    stop_chars: int = 256
    logit_bias: int = 1024
    stored_responses: int = 1024
    stored_response_bytes: int = 64 << 20
    embedding_inputs: int = 2048
    embedding_tokens: int = 300_000
    images: int = 16
    image_bytes: int = 16 << 20
    max_concurrent_requests: int = 512
    max_preprocessing: int = 512
    preprocess_threads: int = 2
    preprocess_timeout_seconds: float = 30.0
    connections: int | None = None
    connections_per_client: int = 512
    head_timeout_seconds: float = 10.0
    body_timeout_seconds: float = 60.0
    body_bytes_per_second: int = 1024
    keep_alive_seconds: float = 30.0
    write_timeout_seconds: float = 60.0

    @classmethod
    def admitting(cls, requests: int, **given: Any) -> Limits:
        """Return limits that let ``requests`` be in progress at once, unless those ``given`` and not None are lower."""
        default = cls()
        least: dict[str, Any] = {
            "max_concurrent_requests": max(default.max_concurrent_requests, requests),
            "max_preprocessing": max(default.max_preprocessing, requests),
            "connections_per_client": max(default.connections_per_client, requests),
        }
        return cls(**least | {name: value for name, value in given.items() if value is not None})

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None:
                check.positive(each.name, value)
        if self.body_memory_bytes < 4 * self.body_bytes:
            raise SpecError(
                "body_memory_bytes",
                f"{self.body_memory_bytes} are too few for a body of {self.body_bytes} bytes and what is read from it",
                f"give at least {4 * self.body_bytes}, four times body_bytes",
            )
        if self.preprocess_threads > MAX_PREPROCESS_THREADS:
            raise SpecError(
                "preprocess_threads",
                f"{self.preprocess_threads} exceed {MAX_PREPROCESS_THREADS}",
                "give about as many as there are CPU cores",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """One server.

    Without ``api_keys`` or a ``key_file`` (``read_key_file``), which is read again where it changes, no key is needed.
    ``allowed_hosts`` are the Host
    headers that are accepted, all where empty; they protect against DNS rebinding. ``cors_origins`` are the origins
    whose pages may send requests from a browser. ``image_hosts`` are the hosts that images may be fetched from; without
    any, images must be ``data:`` URIs. On shutdown running requests have ``drain_seconds`` to finish. An engine that
    has requests but has not stepped for ``stall_timeout_seconds`` is unhealthy. With many streams open, each is sent an
    event every ``stream_interval_seconds`` at most. A request waits for its model to be loaded for
    ``load_timeout_seconds`` at most. Cached prompts and images serve the requests of one key only unless keys
    ``share_prefix_cache``: by its time, and by ``cached_tokens``, a request tells whether a text was read before.
    Where there are several keys, ``priority`` has no effect unless they ``share_priority``: one could keep others
    waiting. ``trusted_proxies`` are addresses and networks of reverse proxies: their ``X-Forwarded-For`` names the
    client, and their connections are not those of one client. ``root_path`` is where a proxy publishes the server, such
    as ``/fathom``: requests below it are answered as those without it, whether the proxy removes it or not.
    """

    api_keys: tuple[str | ApiKey, ...] = field(default=(), repr=False)
    key_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    image_hosts: tuple[str, ...] = ()
    drain_seconds: float = 30.0
    stall_timeout_seconds: float = 300.0
    stream_interval_seconds: float = 0.025
    load_timeout_seconds: float = 120.0
    share_prefix_cache: bool = False
    share_priority: bool = False
    trusted_proxies: tuple[str, ...] = LOOPBACK_NETWORKS
    root_path: str = ""
    access_log: AccessLog = "text"
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        check_root_path(self.root_path)
        check.not_negative("drain_seconds", self.drain_seconds)
        check.positive("stall_timeout_seconds", self.stall_timeout_seconds)
        check.positive("load_timeout_seconds", self.load_timeout_seconds)
        check.not_negative("stream_interval_seconds", self.stream_interval_seconds)
        check_access_log(self.access_log)
        numbered(self.api_keys)
        for proxy in self.trusted_proxies:
            try:
                ipaddress.ip_network(proxy, strict=False)
            except ValueError:
                remedy = "give one such as 10.0.0.2 or 10.0.0.0/24"
                raise SpecError("trusted_proxies", f"{proxy!r} is no address or network", remedy) from None
        for origin in self.cors_origins:
            if origin != "*" and "://" not in origin:
                raise SpecError("cors_origins", f"{origin!r} is no origin", "give one such as http://localhost:3000")
