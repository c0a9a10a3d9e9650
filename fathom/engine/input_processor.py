"""Validates a request and makes its state, before it is queued."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from torch import Tensor

from fathom.engine.block_hash import BlockHasher, ImageTokenFeatures
from fathom.engine.request import Request
from fathom.engine.sampling.draw import SamplingMetadata, fresh_seed
from fathom.engine.scheduler import Scheduler
from fathom.engine.state import RequestState
from fathom.errors import ContextError, SpecError
from fathom.spec.model import ModelSpec
from fathom.spec.sampling import SamplingParams


class InputProcessor:
    """Checks requests and numbers them. May be used from any thread: it reads only what never changes."""

    def __init__(self, model: ModelSpec, scheduler: Scheduler, eos_ids: frozenset[int]) -> None:
        self._model = model
        self._scheduler = scheduler
        self._eos_ids = eos_ids
        self._ids = count()

    def process(self, request: Request) -> RequestState:
        """Return the initial state of a request.

        Raises:
            ContextError: the prompt is empty, or does not fit the context or the pool together with ``max_tokens``.
            SpecError: a token id is outside the vocabulary, or not as many features as image tokens.
        """
        prompt, params = self._checked(request.prompt, request.params)
        images = self._images(prompt, request.features_ND)
        spec = self._scheduler.spec
        shares = spec.prefix_cache and self._scheduler.window is None and params.prompt_logprobs is None
        drawn: list[int] = []
        row = SamplingMetadata(
            params=params,
            prompt=prompt,
            drawn=drawn,
            seed=fresh_seed() if params.seed is None else params.seed,
            constraint=request.constraint,
            eos_ids=self._eos_ids,
        )
        return RequestState(
            next(self._ids),
            request,
            row,
            list(prompt),
            drawn,
            BlockHasher(spec.page_size, salt=request.salt, adapter=request.adapter, images=images) if shares else None,
            images,
            frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos_ids),
        )

    def _checked(self, prompt: Sequence[int], params: SamplingParams) -> tuple[tuple[int, ...], SamplingParams]:
        tokens, vocab, context = tuple(prompt), self._model.vocab_size, self._model.max_position_embeddings
        if not tokens:
            raise ContextError("prompt: has no tokens; begin it with the beginning-of-sequence token or some text")
        if min(tokens) < 0 or max(tokens) >= vocab:
            token = next(token for token in tokens if not 0 <= token < vocab)
            raise SpecError(
                "prompt", f"token {token} is outside the vocabulary of {vocab}", "use this model's tokenizer"
            )
        for token, _ in params.logit_bias:
            if token >= vocab:
                raise SpecError("logit_bias", f"token {token} is outside the vocabulary of {vocab}", "leave it out")
        asked = f"prompt: {len(tokens)} tokens and max_tokens {params.max_tokens}"
        if len(tokens) + params.max_tokens > context:
            raise ContextError(
                f"{asked} exceed the context of {context}; shorten the prompt or ask for at most "
                f"{max(context - len(tokens), 0)} tokens"
            )
        size, total = self._scheduler.spec.page_size, self._scheduler.pages.total
        if self._scheduler.max_pages(len(tokens) + params.max_tokens) > total:
            raise ContextError(
                f"{asked} exceed the pool of {total * size} tokens; raise the engine's cache_tokens to "
                f"{len(tokens) + params.max_tokens}, shorten the prompt or lower max_tokens"
            )
        return tokens, params

    def _images(self, prompt: Sequence[int], features_ND: Tensor | None) -> ImageTokenFeatures | None:
        vision, rows = self._model.vision, 0 if features_ND is None else len(features_ND)
        places = 0 if vision is None else list(prompt).count(vision.image_token_id)
        if rows != places:
            raise SpecError(
                "features", f"{rows} rows for {places} image tokens", "give each image its tokens and its features"
            )
        if vision is None or features_ND is None or not rows:
            return None
        return ImageTokenFeatures(prompt, vision.image_token_id, features_ND)
