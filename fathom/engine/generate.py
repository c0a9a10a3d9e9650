"""Generation over the caches: batched prompts of any lengths, chunked prefill, streaming.

B sequences, T new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fathom.engine.sampling import Row, draw, fresh_seed
from fathom.errors import ContextError, SpecError
from fathom.model.cache import Cache
from fathom.model.decoder import Decoder
from fathom.spec.sampling import Completion, FinishReason, SamplingParams
from fathom.spec.vision import VisionSpec


@dataclass(slots=True)
class _Request:
    """One prompt on its way: what was drawn so far and why it ended."""

    index: int
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    features_ND: Tensor | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class Generator:
    """Continues prompts with one model; implements ``fathom.spec.sampling.Sampler``.

    At most ``max_batch`` requests share a cache; their prompts are read in pieces of ``prefill_chunk`` tokens and then
    decoded together, each at its own position, and leave the batch as they end. Any of ``eos_ids`` ends an answer,
    unless its parameters say ``ignore_eos``. The model is put in evaluation mode.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        eos_ids: Collection[int] = (),
        max_batch: int = 32,
        prefill_chunk: int = 512,
    ) -> None:
        self.model = model.eval()
        self.eos_ids = frozenset(eos_ids)
        self.max_batch = max_batch
        self.prefill_chunk = prefill_chunk

    @property
    def context(self) -> int:
        """Tokens a prompt and its answer may have together."""
        return self.model.spec.max_position_embeddings

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        features: Sequence[Tensor | None] | None = None,
    ) -> list[Completion]:
        """Continue each prompt; one completion each, in order.

        Log-probabilities are of the unfiltered softmax at temperature 1, as a trainer computes them. ``features`` are
        each prompt's image tokens (N, D), as ``Decoder.forward`` takes them.

        Raises:
            ContextError: a prompt is empty, or does not fit the context together with ``max_tokens``.
            SpecError: a token id is outside the vocabulary, there are not as many parameters as prompts, or not as
                many features as a prompt has image tokens.
        """
        requests = self._requests(prompts, params, features)
        by_length = sorted(requests, key=lambda request: len(request.prompt))
        for start in range(0, len(by_length), self.max_batch):
            for _ in self._run(by_length[start : start + self.max_batch]):
                pass
        return [
            Completion(
                token_ids=tuple(r.token_ids), logprobs=tuple(r.logprobs), finish_reason=r.finish_reason or "length"
            )
            for r in requests
        ]

    def stream(
        self, prompt: Sequence[int], params: SamplingParams, *, features_ND: Tensor | None = None
    ) -> Iterator[int]:
        """Yield one prompt's new token ids as they are drawn; the same tokens ``sample`` gives for the same seed.

        The prompt is checked at once, not at the first token.
        """
        (request,) = self._requests([prompt], params, [features_ND])
        return self._streamed(request)

    def _streamed(self, request: _Request) -> Iterator[int]:
        given = 0
        for _ in self._run([request]):
            yield from request.token_ids[given:]
            given = len(request.token_ids)

    def _requests(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        features: Sequence[Tensor | None] | None,
    ) -> list[_Request]:
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        seen = [None] * len(prompts) if features is None else list(features)
        for name, given in (("params", each), ("features", seen)):
            if len(given) != len(prompts):
                raise SpecError(name, f"{len(given)} for {len(prompts)} prompts", "give one for each prompt")
        for prompt, features_ND in zip(prompts, seen, strict=True):
            self._check_features(prompt, features_ND)
        return [
            _Request(index, self._checked(prompt, p), p, fresh_seed() if p.seed is None else p.seed, features_ND)
            for index, (prompt, p, features_ND) in enumerate(zip(prompts, each, seen, strict=True))
        ]

    def _check_features(self, prompt: Sequence[int], features_ND: Tensor | None) -> None:
        vision, rows = self.model.spec.vision, 0 if features_ND is None else len(features_ND)
        places = 0 if vision is None else list(prompt).count(vision.image_token_id)
        if rows != places:
            raise SpecError(
                "features", f"{rows} rows for {places} image tokens", "give each image its tokens and its features"
            )

    def _checked(self, prompt: Sequence[int], params: SamplingParams) -> tuple[int, ...]:
        tokens, vocab = tuple(prompt), self.model.spec.vocab_size
        if not tokens:
            raise ContextError("prompt: has no tokens; begin it with the beginning-of-sequence token or some text")
        for token in tokens:
            if not 0 <= token < vocab:
                raise SpecError(
                    "prompt", f"token {token} is outside the vocabulary of {vocab}", "use this model's tokenizer"
                )
        if len(tokens) + params.max_tokens > self.context:
            raise ContextError(
                f"prompt: {len(tokens)} tokens and max_tokens {params.max_tokens} exceed the context of "
                f"{self.context}; shorten the prompt or ask for at most {max(self.context - len(tokens), 0)} tokens"
            )
        return tokens

    def _run(self, requests: list[_Request]) -> Iterator[None]:
        """Advance a batch to its end, yielding after each token; requests are in order of prompt length."""
        with torch.inference_mode():
            cache = self._allocate(requests)
            logits_BV = self._prefill(requests, cache)
        active = requests
        while True:
            with torch.inference_mode():
                drawn_B = self._draw(active, logits_BV)
            yield
            going = [row for row, request in enumerate(active) if request.finish_reason is None]
            if not going:
                return
            with torch.inference_mode():
                if len(going) < len(active):
                    cache.keep(going)
                    active, drawn_B = [active[row] for row in going], drawn_B[going]
                output = self.model(drawn_B[:, None], cache=cache)
                logits_BV = self.model.logits(output.hidden_BTD[:, -1])

    def _allocate(self, requests: Sequence[_Request]) -> Cache:
        weight = self.model.embed_tokens.weight
        longest = max(len(r.prompt) + r.params.max_tokens for r in requests)
        return Cache.allocate(
            self.model.spec, batch_size=len(requests), max_length=longest, device=weight.device, dtype=weight.dtype
        )

    def _prefill(self, requests: Sequence[_Request], cache: Cache) -> Tensor:
        """Read all prompts, those of one length together; return the logits after each, (B, V)."""
        device = self.model.embed_tokens.weight.device
        logits, start = [], 0
        lengths = [len(request.prompt) for request in requests]
        while start < len(requests):
            stop = start + lengths[start:].count(lengths[start])
            rows = cache.rows(start, stop)
            tokens_BT = torch.tensor([request.prompt for request in requests[start:stop]], device=device)
            images = _Images(requests[start:stop], self.model.spec.vision)
            for chunk_BT in torch.split(tokens_BT, self.prefill_chunk, dim=1):
                output = self.model(chunk_BT, cache=rows, features_ND=images.within(chunk_BT))
            logits.append(self.model.logits(output.hidden_BTD[:, -1]))
            start = stop
        cache.set_lengths(lengths)
        return torch.cat(logits)

    def _draw(self, active: Sequence[_Request], logits_BV: Tensor) -> Tensor:
        rows = [
            Row(params=r.params, prompt=r.prompt, drawn=r.token_ids, seed=r.seed, eos_ids=self.eos_ids) for r in active
        ]
        drawn = draw(logits_BV, rows)
        for request, token in zip(active, drawn, strict=True):
            stops = token.token_id in request.params.stop_token_ids
            if stops or (token.token_id in self.eos_ids and not request.params.ignore_eos):
                request.finish_reason = "stop"
                continue
            request.token_ids.append(token.token_id)
            request.logprobs.append(token.logprob)
            if len(request.token_ids) == request.params.max_tokens:
                request.finish_reason = "length"
        return torch.tensor([token.token_id for token in drawn], device=logits_BV.device)


class _Images:
    """Hands out the image features of prompts that are read together, chunk by chunk."""

    def __init__(self, requests: Sequence[_Request], vision: VisionSpec | None) -> None:
        self._features = [request.features_ND for request in requests]
        self._used = [0] * len(requests)
        any_given = any(features is not None for features in self._features)
        self._token = vision.image_token_id if vision is not None and any_given else None

    def within(self, chunk_BT: Tensor) -> Tensor | None:
        """Return the rows for the image tokens of the next chunk, or None where no prompt has images."""
        if self._token is None:
            return None
        counts = (chunk_BT == self._token).sum(1).tolist()
        rows = []
        for index, (features_ND, count) in enumerate(zip(self._features, counts, strict=True)):
            if features_ND is not None:
                rows.append(features_ND[self._used[index] : self._used[index] + count])
                self._used[index] += count
        return torch.cat(rows)
