"""Fields that chat and text completion requests share."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fathom.serve.schemas.aliases import OPTIONS, SAMPLING_ALIASES, aliased_values
from fathom.serve.schemas.ignored import IgnoredFields, IgnoredValue

MAX_TOKENS = 1 << 24
INT64 = 1 << 63

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""Takes 4.0 for 4; place it after the constraints: ``Annotated[int | None, Field(ge=1), WHOLE]``."""

TokenCount = Annotated[
    int | None,
    Field(ge=-2, lt=INT64, description="Tokens to generate at most; as many as fit where it is more, or negative."),
    WHOLE,
]


class RequestModel(BaseModel):
    """Base of every object in a request body.

    Values of known fields are not coerced: ``"1"`` is no number, ``true`` is none either; a whole float is an integer
    where the field is marked ``WHOLE``. Unknown fields are ignored: their names are kept, with True for a
    value and None for null, until ``take_ignored`` collects them; their values are never read.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)
    __pydantic_extra__: dict[str, IgnoredValue] = Field(init=False)

    def take_ignored(self, ignored: IgnoredFields, path: str = "") -> None:
        """Move the names of unknown fields, here and in all inner objects, to ``ignored``; null asks for nothing."""
        extra = self.__pydantic_extra__
        if extra:
            known = type(self)._known_names()
            for name, given in extra.items():
                if given is not None:
                    ignored.add(f"{path}{name}", known)
            extra.clear()  # so that model_dump has known fields only
        for name, value in self.__dict__.items():
            if isinstance(value, RequestModel):
                value.take_ignored(ignored, f"{path}{self._given_name(name)}.")
            elif isinstance(value, list) and value and isinstance(value[0], RequestModel):
                for index, item in enumerate(value):
                    item.take_ignored(ignored, f"{path}{self._given_name(name)}[{index}].")

    def resolved(self, ignored: IgnoredFields) -> Self:
        """Return this with fields of other names moved to their own; those that cannot be are added to ``ignored``."""
        return self

    @classmethod
    def _known_names(cls) -> frozenset[str]:
        return frozenset(map(cls._given_name, cls.model_fields))

    @classmethod
    def _given_name(cls, field: str) -> str:
        return cls.model_fields[field].alias or field


class StreamOptions(RequestModel):
    """Options of a streamed response."""

    include_usage: bool | None = Field(None, description="Send a last chunk with the usage.")


class StructuredOutputs(RequestModel):
    """vLLM's form of an answer's format; one of the fields."""

    json_: str | dict[str, Any] | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = Field(None, description="Refused: it cannot be followed.")


class SamplingFields(RequestModel):
    """Sampling parameters, under their own names and those that other servers give them (``schemas.aliases``)."""

    temperature: float | None = Field(None, ge=0, le=100, description="Default 1; 0 is greedy decoding.")
    top_p: float | None = Field(None, ge=0, le=1, description="0 leaves the most likely token.")
    top_k: Annotated[
        int | None,
        Field(ge=-1, le=MAX_TOKENS, description="Sample from the k most likely tokens; 0 or -1: from all."),
        WHOLE,
    ] = None
    min_p: float | None = Field(None, ge=0, le=1, description="Minimum probability relative to the most likely token.")
    max_tokens: TokenCount = None
    max_new_tokens: TokenCount = None
    num_predict: TokenCount = None
    n_predict: TokenCount = None
    min_tokens: Annotated[
        int | None, Field(ge=0, le=MAX_TOKENS, description="No end of sequence before this many tokens."), WHOLE
    ] = None
    stop: str | list[str] | None = Field(None, description="Stop strings; they are not part of the output.")
    stop_sequences: list[str] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    repeat_penalty: float | None = Field(None, gt=0, le=100)
    seed: Annotated[
        int | None, Field(ge=-INT64, lt=INT64, description="The same seed gives the same output."), WHOLE
    ] = None
    random_seed: Annotated[int | None, Field(ge=-INT64, lt=INT64), WHOLE] = None

    def resolved(self, ignored: IgnoredFields) -> Self:
        """Return this with the values of other names under the fields' own."""
        return self.model_copy(update=aliased_values(self, SAMPLING_ALIASES, ignored))


class SamplingRequest(SamplingFields):
    """What every request for generated text may have."""

    model: str | None = Field(None, description="A name that GET /v1/models lists; the served model if left out.")
    n: Annotated[int | None, Field(ge=1, description="Choices per prompt."), WHOLE] = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=256)
    ignore_eos: bool | None = Field(None, description="Continue after end-of-sequence tokens.")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="Token ids (as strings) with a bias added to their logits."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int | None, Field(ge=-1000, le=1000, description="Higher runs first."), WHOLE] = None
    cache_salt: str | None = Field(
        None, max_length=256, description="Cached prefixes are shared only between requests with the same salt."
    )
    options: SamplingFields | None = Field(None, description="Sampling parameters as Ollama nests them.")
    guided_regex: str | None = Field(None, description="Regular expression that the whole output must match.")
    guided_json: str | dict[str, Any] | None = Field(None, description="JSON Schema, as vLLM names it.")
    guided_choice: list[str] | None = Field(None, description="The output is one of these texts.")
    guided_grammar: str | None = Field(None, description="Grammar in Lark's or llama.cpp's syntax.")
    structured_outputs: StructuredOutputs | None = None
    json_schema: str | dict[str, Any] | None = Field(None, description="JSON Schema, as llama.cpp and SGLang name it.")
    grammar: str | None = Field(None, description="Grammar, as llama.cpp names it.")
    regex: str | None = Field(None, description="Regular expression, as SGLang names it.")
    ebnf: str | None = Field(None, description="Grammar, as SGLang names it.")
    format: str | dict[str, Any] | None = Field(None, description="'json' or a JSON Schema, as Ollama names it.")

    def resolved(self, ignored: IgnoredFields) -> Self:
        """Return this with the values of other names, and those within ``options``, under the fields' own."""
        own = super().resolved(ignored)
        if own.stream_options is not None and not own.stream:
            ignored.add("stream_options", note="the response is no stream")
        if own.options is None:
            return own
        own = own.model_copy(update={"options": own.options.resolved(ignored)})
        return own.model_copy(update=aliased_values(own, OPTIONS, ignored))

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list; an empty one stops nothing."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in given if stop]

    @property
    def choices(self) -> int:
        """Choices per prompt."""
        return 1 if self.n is None else self.n

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)
