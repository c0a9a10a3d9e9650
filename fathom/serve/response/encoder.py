"""How a response is written: the JSON bodies and server-sent events of one route."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fathom.serve.errors import ApiError
from fathom.serve.response.answer import Choice
from fathom.serve.response.choices import ListedChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseMetadata:
    """What a response's body or all its events share; ``created`` is in seconds since the epoch."""

    response_id: str
    model: str
    created: int

    @classmethod
    def new(cls, prefix: str, model: str, separator: str = "-") -> ResponseMetadata:
        """Return the metadata of a response that begins now, with a new id."""
        return cls(response_id=f"{prefix}{separator}{uuid.uuid4().hex}", model=model, created=int(time.time()))

    def fields(self, kind: str) -> dict[str, Any]:
        """Return these fields as chat and text completions have them, with ``kind`` as the ``object`` field."""
        return {"id": self.response_id, "object": kind, "created": self.created, "model": self.model}


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of a response; ``cached`` of the prompt's tokens and ``reasoning`` of the generated ones."""

    prompt: int
    cached: int
    completion: int
    reasoning: int

    @classmethod
    def of(cls, choices: Sequence[Choice], per_prompt: int) -> Usage:
        """Count choices; a prompt with several of them counts once."""
        prompts = choices[::per_prompt]
        return cls(
            prompt=sum(choice.prompt_tokens for choice in prompts),
            cached=sum(choice.cached_tokens for choice in prompts),
            completion=sum(choice.generated for choice in choices),
            reasoning=sum(choice.reasoning for choice in choices),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the counts as chat and text completions have them."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


class ResponseEncoder(ABC):
    """Writes one response, either as a whole body or as server-sent events; every method returns complete events."""

    @property
    def large(self) -> bool:
        """Whether the whole response is large however little was generated."""
        return False

    @abstractmethod
    def begin(self) -> str:
        """Return the events before anything is generated."""

    @abstractmethod
    def update(self, choice: Choice) -> str:
        """Return the events of what is new in a choice, which may be finished now."""

    @abstractmethod
    def end(self, usage: Usage) -> str:
        """Return the last events; all choices are finished."""

    @abstractmethod
    def error(self, error: ApiError) -> str:
        """Return the events of an error that ends the stream."""

    @abstractmethod
    def body(self, usage: Usage) -> dict[str, Any]:
        """Return the whole response; all choices are finished."""


class ChoicesEncoder(ResponseEncoder):
    """Chat and text completions: chunks with ``choices``, the usage if asked for, and ``[DONE]``.

    An error is an event of its own, without ``[DONE]`` after it.
    """

    def __init__(
        self, choices: Sequence[ListedChoice], metadata: ResponseMetadata, *, kind: str, chunk_kind: str, usage: bool
    ) -> None:
        self._choices = choices
        self._whole = metadata.fields(kind)
        self._fields = metadata.fields(chunk_kind) | {"system_fingerprint": None}
        self._usage = usage
        self._before = f'data: {json.dumps(self._fields)[:-1]}, "choices":['
        self._after = '],"usage":null}\n\n' if usage else "]}\n\n"

    def begin(self) -> str:
        """Nothing: the first chunk comes with the first token."""
        return ""

    def update(self, choice: Choice) -> str:
        """Return the chunks of what is new in a choice."""
        assert isinstance(choice, ListedChoice)
        return "".join(f"{self._before}{chunk}{self._after}" for chunk in choice.chunks())

    def end(self, usage: Usage) -> str:
        """Return the usage chunk if asked for, and ``[DONE]``."""
        last = self._fields | {"choices": [], "usage": usage.to_json()}
        return (f"data: {json.dumps(last)}\n\n" if self._usage else "") + "data: [DONE]\n\n"

    def error(self, error: ApiError) -> str:
        """Return the error as one event."""
        return f"data: {json.dumps(error.body)}\n\n"

    def body(self, usage: Usage) -> dict[str, Any]:
        """Return the whole body."""
        return self._whole | {
            "choices": [choice.to_json() for choice in self._choices],
            "usage": usage.to_json(),
            "system_fingerprint": None,
        }
