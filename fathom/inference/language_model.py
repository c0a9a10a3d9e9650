"""``LanguageModel``: a loaded model with its tokenizer and engine; what ``fathom.load`` returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, overload

import torch
from torch import Tensor

from fathom.engine.engine import Engine
from fathom.errors import ContextError, DataError, SpecError, TooManyTokens
from fathom.inference.chat_session import (
    ChatAnswer,
    ChatKwargs,
    ChatStream,
    Messages,
    option_names,
    split_options,
    start_chat,
)
from fathom.inference.decoder_loading import load_decoder, weight_names
from fathom.inference.embedding import Pooling, check_sequence, embed
from fathom.inference.generation import (
    GeneratedText,
    TextKwargs,
    as_texts,
    chat_many,
    generate_texts,
    is_batch,
    sampling_fields,
)
from fathom.inference.loading import open_source
from fathom.inference.prompt import FeatureCache, Prompt, image_processing, make_prompt
from fathom.inference.request_preparation import TextOptions
from fathom.model.cache import StaticCache
from fathom.model.decoder import Decoder
from fathom.model.device import resolve_device
from fathom.plan import count_parameters, short_count
from fathom.progress import NULL_PROGRESS, Progress
from fathom.spec import check
from fathom.spec.engine import WEIGHT_CHOICES, EngineSpec, WeightChoice
from fathom.spec.images import ImageProcessing
from fathom.spec.model import ModelSpec
from fathom.spec.sampling import SamplingParams
from fathom.spec.token_ids import TokenIds, to_token_ids
from fathom.tokenizer.bpe import Tokenizer
from fathom.tokenizer.definition import make_tokenizer_remedy

if TYPE_CHECKING:
    from fathom.chat.grammar import GrammarCompiler
    from fathom.inference.suggestions import Suggestions


class LanguageModel:
    """A model with its tokenizer.

    ``tokenizer`` is None when the directory has none; then only token ids can be used.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer | None,
        path: Path,
        eos_ids: frozenset[int],
        processing: ImageProcessing | None = None,
        engine: EngineSpec | None = None,
    ) -> None:
        self.model = model.eval()
        self.path = path
        self.processing = processing
        self.eos_ids = eos_ids
        self._tokenizer = tokenizer
        self._engine_spec = engine
        self._engine: Engine | None = None
        self._grammars: GrammarCompiler | None = None
        self._features = FeatureCache()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        weights: WeightChoice = "auto",
        progress: Progress = NULL_PROGRESS,
        cache_dir: Path | None = None,
        engine: EngineSpec | None = None,
        chat_template: str | None = None,
        adapter: str | Path | None = None,
    ) -> LanguageModel:
        """Load what ``open_source`` opens: a run, a checkpoint, a published directory, a GGUF file, a name.

        ``dtype`` is float32, bfloat16, or auto: float32 on CPU, bfloat16 elsewhere. ``weights`` int8 or int4 quantizes
        them (``model.quantize``). By default, auto, those that a file quantized are held on a CPU as they are, or in 8
        bits, where the native library is there, and are else plain. ``progress`` receives the bytes downloaded and
        loaded. ``cache_dir`` is the cache of downloads. ``engine`` configures the engine. ``chat_template`` is one of
        the model's by name, or the text of another. ``adapter`` is merged into the weights: see ``open_adapter``.

        Raises:
            CheckpointError: nothing loadable at ``path``, or tensors do not fit their spec, or the adapter the model.
            DataError: the model has no chat template of that name.
        """
        check.one_of("weights", weights, WEIGHT_CHOICES)
        where = resolve_device(device)
        kind = resolve_dtype(dtype, where)
        source = open_source(path, progress, cache_dir=cache_dir)
        if adapter is not None:
            from fathom.inference.adapters import with_adapter_of

            source = with_adapter_of(source, adapter)
        model = load_decoder(source, where, kind, weights, progress)
        tokenizer = source.tokenizer()
        if chat_template is not None and tokenizer is not None:
            tokenizer = tokenizer.with_template(chat_template)
        return cls(model, tokenizer, source.path, source.eos_ids, image_processing(source), engine)

    def __repr__(self) -> str:
        count, model = count_parameters(self.spec), self.model
        active = f", {short_count(count.active)} active" if self.spec.moe is not None else ""
        weights = self.weights
        packed = "" if weights == "plain" else f", weights {weights}"
        return (
            f"<LanguageModel {self.spec.name}: {self.spec.family}, {short_count(count.total)} parameters{active}, "
            f"context {self.spec.max_position_embeddings}, {str(model.dtype).removeprefix('torch.')}{packed} on "
            f"{model.device}, {self.path}>"
        )

    @cached_property
    def weights(self) -> str:
        """The formats of its quantized weights, as in Q4_1 and Q8_0, or plain."""
        return weight_names(self.model)

    @property
    def spec(self) -> ModelSpec:
        """The model's spec."""
        return self.model.spec

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; ``DataError`` when the directory has none."""
        if self._tokenizer is None:
            remedy = make_tokenizer_remedy(self.path) or "put tokenizer.json beside the weights"
            raise DataError(f"{self.path}: has no tokenizer; {remedy}")
        return self._tokenizer

    @property
    def engine(self) -> Engine:
        """The inference engine, created on first use: its page pool may be large."""
        if self._engine is None:
            unused_ids = () if self._tokenizer is None else self._tokenizer.unused_ids(self.spec.vocab_size)
            self._engine = Engine(self.model, eos_ids=self.eos_ids, unused_ids=unused_ids, spec=self._engine_spec)
        return self._engine

    @property
    def grammars(self) -> GrammarCompiler:
        """The grammar compiler for structured output, created on first use: it reads the vocabulary."""
        if self._grammars is None:
            from fathom.chat.grammar import GrammarCompiler

            self._grammars = GrammarCompiler(self.tokenizer, eos_ids=self.eos_ids or None)
        return self._grammars

    @cached_property
    def suggestions(self) -> Suggestions:
        """What to ask it first, by what its run directory records; no prompts for a model that is no run's."""
        from fathom.inference.suggestions import suggestions_for

        return suggestions_for(self.path, self.tokenizer)

    @property
    def cache_bytes_per_token(self) -> float:
        """Bytes of cache per token, in the model's dtype or in the engine's cache format."""
        if self._engine_spec is not None and self._engine_spec.cache_format != "plain":
            return self.engine.pool.bytes_per_token
        model = self.model
        cache = StaticCache.allocate(self.spec, batch_size=1, max_length=1, device=model.device, dtype=model.dtype)
        return cache.bytes_per_token

    def logits(self, token_ids: TokenIds) -> Tensor:
        """Return the float32 logits after every token, (T, V): row t predicts token t + 1.

        ``token_ids`` is a sequence of integers, or an integer array or tensor of one dimension.

        Raises:
            ContextError: no tokens, or more than the model's context.
            SpecError: no sequence of token ids, or one of them is outside the vocabulary.
        """
        tokens = to_token_ids("token_ids", token_ids)
        if not tokens:
            raise ContextError("token_ids: has no tokens; begin with the beginning-of-sequence token or some text")
        beyond = [token for token in tokens if not 0 <= token < self.spec.vocab_size]
        if beyond:
            raise SpecError(
                "token_ids", f"{beyond[0]} is outside the vocabulary of {self.spec.vocab_size}", "use this tokenizer"
            )
        tokens_1T = torch.tensor([tokens], device=self.model.device)
        with torch.inference_mode():
            return self.model.logits(self.model(tokens_1T).hidden_BTD[0])

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        cache_salt: str = "",
        max_prompt_tokens: int | None = None,
        **variables: Any,
    ) -> Prompt:
        """Encode a conversation by the model's chat template, images included; see ``make_prompt``.

        ``variables`` are passed to the template. Features of recent images are cached by their pixels, for
        callers of one ``cache_salt`` only.
        """
        if not self.tokenizer.can_chat:
            raise DataError(f"{self.path}: has no chat template; give token ids of a text to continue instead")
        return make_prompt(
            self.model,
            self.tokenizer,
            messages,
            processing=self.processing,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
            features=self._features,
            cache_salt=cache_salt,
            max_prompt_tokens=max_prompt_tokens,
        )

    @overload
    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        system: str | None = None,
        stream: Literal[False] = False,
        **chat_options: Unpack[ChatKwargs],
    ) -> ChatAnswer: ...
    @overload
    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        system: str | None = None,
        stream: Literal[True],
        **chat_options: Unpack[ChatKwargs],
    ) -> ChatStream: ...
    @overload
    def chat(
        self,
        messages: list[str] | tuple[str, ...] | Sequence[list[Any]],
        *,
        system: str | None = None,
        stream: Literal[False] = False,
        **chat_options: Unpack[ChatKwargs],
    ) -> list[ChatAnswer]: ...
    def chat(
        self,
        messages: Messages | Sequence[Messages],
        *,
        system: str | None = None,
        stream: bool = False,
        **chat_options: Unpack[ChatKwargs],
    ) -> ChatAnswer | ChatStream | list[ChatAnswer]:
        """Answer a message or a conversation, or a list of either; ``print(model.chat("Why is the sky blue?"))``.

        ``messages`` is a user message, or messages with ``role`` and ``content``, whose contents may hold images; or a
        list of such texts or conversations, which are answered together, in order. ``chat_options`` are fields of
        ``ChatOptions`` and of ``SamplingParams``. With ``stream``, deltas are yielded as they are generated, and
        ``ChatStream.answer`` is the whole.

        Raises:
            ContextError: a conversation does not fit the context together with ``max_tokens``.
            DataError: a message, image or tool cannot be used, or there is no chat template.
            SpecError: an option is unknown or out of range.
        """
        if is_batch(messages):
            if stream:
                raise SpecError("stream", "is for one conversation", "call chat once for each, or leave stream out")
            return chat_many(self, messages, system, chat_options)
        streamed = start_chat(self, cast(Messages, messages), system=system, **chat_options)
        return streamed if stream else streamed.answer

    def embed(
        self,
        texts: str | Sequence[str | TokenIds],
        *,
        pooling: Pooling = "mean",
        dimensions: int | None = None,
    ) -> Tensor:
        """Return the embeddings of texts or of token ids, float32 (S, D), each of length 1.

        They are the hidden states after the final norm, their mean over the tokens or with ``pooling`` last that of the
        last token; ``dimensions`` keeps the first ones. A generative model's embeddings rank texts modestly.

        Raises:
            ContextError: a text is empty or longer than the context.
            SpecError: ``pooling`` or ``dimensions`` does not exist, or a token id is outside the vocabulary.
        """
        given = [texts] if isinstance(texts, str) else texts
        sequences = [self.embedding_tokens(text, f"texts[{index}]") for index, text in enumerate(given)]
        return embed(self.model, sequences, pooling=pooling, dimensions=dimensions)

    def embedding_tokens(self, text: str | TokenIds, name: str) -> tuple[int, ...]:
        """Return the tokens that ``embed`` reads of a text, or token ids as they are, after checking them as it does.

        ``name`` is what an error calls the text.
        """
        if not isinstance(text, str):
            tokens = to_token_ids(name, text)
        elif text:
            tokens = (*self.tokenizer.prefix_ids, *self._encoded(text, name))
        else:
            raise ContextError(f"{name}: is an empty text; give one")
        check_sequence(tokens, self.spec, name)
        return tokens

    def _encoded(self, text: str, name: str) -> list[int]:
        most = self.spec.max_position_embeddings
        try:
            return self.tokenizer.encode(text, max_tokens=most)
        except TooManyTokens as error:
            raise ContextError(
                f"{name}: has about {error.tokens} tokens, more than the context of {most}; shorten it"
            ) from None

    @overload
    def generate(
        self, prompt: str, params: SamplingParams | None = None, **options: Unpack[TextKwargs]
    ) -> GeneratedText: ...
    @overload
    def generate(
        self, prompt: list[str] | tuple[str, ...], params: SamplingParams | None = None, **options: Unpack[TextKwargs]
    ) -> list[GeneratedText]: ...
    @overload
    def generate(
        self, prompt: Prompt | TokenIds, params: SamplingParams | None = None, **options: Unpack[TextKwargs]
    ) -> list[int]: ...
    def generate(
        self,
        prompt: str | Sequence[str] | Prompt | TokenIds,
        params: SamplingParams | None = None,
        **options: Unpack[TextKwargs],
    ) -> GeneratedText | list[GeneratedText] | list[int]:
        """Continue a text, a list of texts, or token ids; ``print(model.generate("The city of", max_tokens=20))``.

        A text gives a ``GeneratedText``, a list of texts a list of them, drawn together. Token ids, or what
        ``prompt()`` returns, give the new token ids only. Options are those of ``SamplingParams``, in ``params`` or by
        name, with its defaults, and for texts those of ``TextOptions``; ``max_tokens`` of a text is by default what
        fits the context, at most 1024.

        Raises:
            ContextError: a prompt is empty, or does not fit the context together with ``max_tokens``.
            DataError: a conversation is given; ``chat`` answers those.
            SpecError: an option is unknown, or a token id is outside the vocabulary.
        """
        given = sampling_fields(params, options)
        texts = as_texts(prompt)
        if texts is not None:
            generated = generate_texts(self, texts, given)
            return generated[0] if isinstance(prompt, str) else generated
        of_texts = sorted(name for name in given.keys() & option_names(TextOptions) if given[name])
        if of_texts:
            raise SpecError(of_texts[0], "is for texts", "give the prompt as a text, or leave it out")
        _, sampling = split_options(options, TextOptions)
        return list(self.stream(prompt, params or SamplingParams(**sampling)))  # type: ignore[arg-type]

    def stream(self, prompt: Prompt | TokenIds, params: SamplingParams | None = None) -> Iterator[int]:
        """Yield the new token ids as they are generated; arguments and errors as of ``generate``."""
        read = prompt if isinstance(prompt, Prompt) else Prompt(to_token_ids("prompt", prompt))
        return self.engine.stream(read.token_ids, params or SamplingParams(), features_ND=read.features_ND)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the type of the weights for ``auto``, ``float32`` or ``bfloat16`` on a device; ``SpecError`` otherwise."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in known:
        raise SpecError("dtype", f"unknown value {name!r}", "use auto, float32 or bfloat16")
    return known[name]
