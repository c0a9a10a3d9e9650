"""What each API key has used of its limits, and the keys of a server as they are now."""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from starlette.requests import Request as HttpRequest

from fathom.errors import DataError, SpecError
from fathom.files import sha256
from fathom.logs import logger
from fathom.serve.api_keys import ApiKey, check_distinct, numbered, read_key_file
from fathom.serve.errors import ApiError
from fathom.serve.metrics import Metrics
from fathom.serve.settings import ServeSettings

_MINUTE, _DAY = 60.0, 86_400.0
_LOOK_SECONDS = 1.0
LIMIT_HEADERS = tuple(
    f"x-ratelimit-{fact}-{what}" for what in ("requests", "tokens") for fact in ("limit", "remaining", "reset")
)
"""What ``KeyUsage.headers`` may have."""
Clock = Callable[[], float]


class Budget:
    """An amount that refills evenly within ``seconds``. What is left may be below 0: an answer's length is not known
    before it ends."""

    def __init__(self, amount: int, seconds: float, clock: Clock) -> None:
        self.amount, self.seconds, self._clock = amount, seconds, clock
        self._left, self._at = float(amount), clock()

    @property
    def left(self) -> float:
        """What may be used now."""
        now = self._clock()
        self._left = min(self._left + (now - self._at) * self.amount / self.seconds, self.amount)
        self._at = now
        return self._left

    def take(self, amount: float) -> None:
        """Use some of it."""
        self._left = self.left - amount

    def seconds_until(self, amount: float) -> float:
        """Seconds until so much is left."""
        return max(0.0, (amount - self.left) * self.seconds / self.amount)

    def adopt(self, before: Budget) -> None:
        """Take over what was used of another size of this budget."""
        self.take(before.amount - before.left)


class KeyUsage:
    """What one key uses. All methods are called on the event loop."""

    def __init__(self, key: ApiKey, metrics: Metrics, clock: Clock = time.monotonic) -> None:
        self.digest = key.digest
        self.in_progress = 0
        self.models: frozenset[str] | None = None
        """The models that it may use, where not all."""
        self._metrics, self._clock = metrics, clock
        self._requests: Budget | None = None
        self._tokens: dict[str, Budget] = {}
        self.set(key)

    def set(self, key: ApiKey) -> None:
        """Hold the key to these limits from now on; what was used counts."""
        self.key = key
        self._metrics.key_in_progress.labels(key.name).set(self.in_progress)
        requests, tokens = self._requests, self._tokens
        self._requests = self._budget(key.requests_per_minute, _MINUTE, requests)
        sizes = {"minute": (key.tokens_per_minute, _MINUTE), "day": (key.tokens_per_day, _DAY)}
        made = {name: self._budget(*size, tokens.get(name)) for name, size in sizes.items()}
        self._tokens = {name: budget for name, budget in made.items() if budget is not None}

    def begin(self, retry_after: Callable[[], int]) -> None:
        """Count a request, until ``end``.

        Raises:
            ApiError: 429, one of its limits is used; ``retry_after`` says for how long where too many are in progress.
        """
        key = self.key
        if key.concurrent_requests is not None and self.in_progress >= key.concurrent_requests:
            problem = f"{self.in_progress} requests are in progress, the most it may have"
            self._refuse(problem, "concurrent", retry_after())
        if self._requests is not None and self._requests.left < 1:
            seconds = self._requests.seconds_until(1)
            self._refuse(f"{self._requests.amount} requests a minute are used", "requests", seconds)
        for name, budget in self._tokens.items():
            if budget.left < 1:
                self._refuse(f"{budget.amount} tokens a {name} are used", f"tokens_{name}", budget.seconds_until(1))
        if self._requests is not None:
            self._requests.take(1)
        self.in_progress += 1
        self._metrics.key_requests.labels(key.name).inc()
        self._metrics.key_in_progress.labels(key.name).set(self.in_progress)

    def end(self) -> None:
        """Count the end of a request."""
        self.in_progress -= 1
        self._metrics.key_in_progress.labels(self.key.name).set(self.in_progress)

    def charge(self, *, prompt: int = 0, generated: int = 0) -> None:
        """Count tokens."""
        for budget in self._tokens.values():
            budget.take(prompt + generated)
        self._metrics.key_prompt_tokens.labels(self.key.name).inc(prompt)
        self._metrics.key_generated_tokens.labels(self.key.name).inc(generated)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that tell clients what is left, as OpenAI names them; of two budgets the one with less."""
        tightest = {
            "requests": self._requests,
            "tokens": min(self._tokens.values(), key=lambda b: b.left, default=None),
        }
        found = {}
        for what, budget in tightest.items():
            if budget is not None:
                found[f"x-ratelimit-limit-{what}"] = str(budget.amount)
                found[f"x-ratelimit-remaining-{what}"] = str(max(math.floor(budget.left), 0))
                found[f"x-ratelimit-reset-{what}"] = f"{math.ceil(budget.seconds_until(budget.amount))}s"
        return found

    def _budget(self, amount: int | None, seconds: float, before: Budget | None) -> Budget | None:
        if amount is None:
            return None
        made = Budget(amount, seconds, self._clock)
        if before is not None:
            made.adopt(before)
        return made

    def _refuse(self, problem: str, limit: str, seconds: float) -> None:
        self._metrics.key_limited.labels(self.key.name, limit).inc()
        wait = max(math.ceil(seconds), 1)
        message = f"key {self.key.name}: {problem}; try again in {wait} s"
        raise ApiError(429, message, code="rate_limit_exceeded", retry_after=wait)


class KeyRing:
    """The keys of one server. A key file that has changed is read again; one that cannot be used changes nothing.

    ``models`` are the names that keys may be limited to, and the model of each. All methods are called on the event
    loop.
    """

    def __init__(self, settings: ServeSettings, models: Mapping[str, str], metrics: Metrics) -> None:
        self._given, self._file = numbered(settings.api_keys), settings.key_file
        self._models, self._metrics = models, metrics
        self._usage: dict[str, KeyUsage] = {}
        self._version = _version(self._file)
        self._looked = time.monotonic()
        self._set(self._given if self._file is None else (*self._given, *read_key_file(self._file)))

    def __len__(self) -> int:
        return len(self._usage)

    def find(self, given: Iterable[bytes]) -> KeyUsage | None:
        """Return the key that is among those ``given``, None where none is; all are compared, in constant time."""
        self._refresh()
        hashed = [sha256(key) for each in given if (key := each.strip())]
        matching = [digest for key in hashed for digest in self._usage if hmac.compare_digest(key, digest)]
        return self._usage[matching[0]] if matching else None

    def _refresh(self) -> None:
        """Read the file again where it has changed; it is looked at once a second at most."""
        if self._file is None or time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        version = _version(self._file)
        if version == self._version:
            return
        self._version = version
        try:
            self._set((*self._given, *read_key_file(self._file)))
        except (DataError, SpecError) as error:
            logger.warning("--keys: the keys of before stay in use: %s", error)

    def _set(self, keys: tuple[ApiKey, ...]) -> None:
        check_distinct(keys)
        for key in keys:
            unknown = [name for name in key.models or () if name not in self._models]
            if unknown:
                served = ", ".join(sorted(self._models))
                raise SpecError(f"keys.{key.name}.models", f"{unknown[0]!r} is not served", f"use names of {served}")
        before = self._usage
        self._usage = {}
        for key in keys:
            usage = self._usage[key.digest] = before.get(key.digest) or KeyUsage(key, self._metrics)
            usage.set(key)
            usage.models = None if key.models is None else frozenset(self._models[name] for name in key.models)


def _version(file: Path | None) -> tuple[int, int, int] | None:
    """What tells a file's versions apart; None where there is none."""
    if file is None:
        return None
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def usage_of(http: HttpRequest) -> KeyUsage | None:
    """Return what a request's key uses; None where there are no keys."""
    found: KeyUsage | None = http.scope["state"].get("key")
    return found
