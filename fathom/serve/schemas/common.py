"""Fields that chat and text completion requests share."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from fathom.serve.schemas.aliases import OPTIONS, SAMPLING_ALIASES, aliased_values
from fathom.serve.schemas.ignored import IgnoredFields, IgnoredValue

MAX_TOKENS = 1 << 24
INT64 = 1 << 63

MAX_NAME = 1024
MAX_ID = 1 << 16
MAX_TEXT = 1 << 23
MAX_DATA = 1 << 30
MAX_FORMAT = 1 << 20
MAX_OBJECT = 1 << 12
MAX_ITEMS = 1 << 12
MAX_INPUTS = 1 << 13
MAX_TOKEN_IDS = 1 << 21
"""What a schema takes at most: characters of a name, an id (some hold a signature), a text, an image's URL and a
grammar; fields of a free object; elements of a list, of a list of inputs and of a list of token ids.
``settings.Limits`` bounds most of them further, ``http.json_cost`` all values of a body together."""

Name = Annotated[str, Field(max_length=MAX_NAME)]
Identifier = Annotated[str, Field(max_length=MAX_ID)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Data = Annotated[str, Field(max_length=MAX_DATA)]
Format = Annotated[str, Field(max_length=MAX_FORMAT)]
JsonObject = Annotated[dict[str, Any], Field(max_length=MAX_OBJECT)]

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_TOKEN_IDS, fail_fast=True)]
Names = Annotated[list[Name], Field(max_length=MAX_ITEMS, fail_fast=True)]
Texts = Annotated[list[Text], Field(max_length=MAX_ITEMS, fail_fast=True)]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _few(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_ITEMS:
        raise PydanticCustomError("too_long", f"Object should have at most {MAX_ITEMS} fields, not {len(value)}")
    return value


def _as_is(value: Any) -> Any:
    return value


Prompts = Annotated[
    Text
    | Annotated[list[Text], Field(max_length=MAX_INPUTS, fail_fast=True)]
    | TokenIds
    | Annotated[list[TokenIds], Field(max_length=MAX_INPUTS, fail_fast=True)],
    BeforeValidator(_as_is),
]
"""A text, texts, token ids or lists of them; made Python objects once, not again in the error of each branch."""

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

    def model_post_init(self, context: Any, /) -> None:
        """Do nothing, in Python: while a body of many objects is parsed, other threads run between them."""

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

    json_: Format | JsonObject | None = Field(None, alias="json")
    regex: Format | None = None
    choice: Texts | None = None
    grammar: Format | None = None
    json_object: bool | None = None
    structural_tag: Format | JsonObject | None = Field(None, description="Refused: it cannot be followed.")


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
    stop: Text | Texts | None = Field(None, description="Stop strings; they are not part of the output.")
    stop_sequences: Texts | None = None
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

    model: Name | None = Field(None, description="A name that GET /v1/models lists; the served model if left out.")
    n: Annotated[int | None, Field(ge=1, description="Choices per prompt."), WHOLE] = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256, fail_fast=True)] | None = None
    ignore_eos: bool | None = Field(None, description="Continue after end-of-sequence tokens.")
    logit_bias: Annotated[
        Annotated[dict[Name, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_ITEMS)] | None,
        Field(description="Token ids (as strings) with a bias added to their logits."),
        BeforeValidator(_few),
    ] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int | None, Field(ge=-1000, le=1000, description="Higher runs first."), WHOLE] = None
    cache_salt: str | None = Field(
        None, max_length=256, description="Cached prefixes are shared only between requests with the same salt."
    )
    options: SamplingFields | None = Field(None, description="Sampling parameters as Ollama nests them.")
    guided_regex: Format | None = Field(None, description="Regular expression that the whole output must match.")
    guided_json: Format | JsonObject | None = Field(None, description="JSON Schema, as vLLM names it.")
    guided_choice: Texts | None = Field(None, description="The output is one of these texts.")
    guided_grammar: Format | None = Field(None, description="Grammar in Lark's or llama.cpp's syntax.")
    structured_outputs: StructuredOutputs | None = None
    json_schema: Format | JsonObject | None = Field(None, description="JSON Schema, as llama.cpp and SGLang name it.")
    grammar: Format | None = Field(None, description="Grammar, as llama.cpp names it.")
    regex: Format | None = Field(None, description="Regular expression, as SGLang names it.")
    ebnf: Format | None = Field(None, description="Grammar, as SGLang names it.")
    format: Format | JsonObject | None = Field(None, description="'json' or a JSON Schema, as Ollama names it.")

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
