"""The state of one request in the engine."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from torch import Tensor

from fathom.engine.block_hash import BlockHasher, ImageTokenFeatures
from fathom.engine.drafting.ngram_index import NgramIndex
from fathom.engine.request import Output, Request
from fathom.engine.routed_experts import RoutedExpertsRecorder
from fathom.engine.sampling.draw import SamplingMetadata
from fathom.spec.sampling import FinishReason, TokenLogprob


@dataclass(slots=True, eq=False)
class RequestState:
    """A request with its tokens, pages and progress.

    ``tokens`` are the prompt and the sampled tokens; the first ``num_computed_tokens`` of them have KV entries in
    ``pages``, which start at token ``first_page_token``, and the hashes of the first ``num_hashed_pages`` pages are
    registered. Ids follow arrival. ``block_hashes`` is None where pages are not shared. ``drawn``, which is also
    ``row.drawn``, grows with the sampled tokens; a token of ``all_stop_token_ids`` ends the answer. ``ngram_index`` and
    ``pending_hidden_ND``, the latest hidden states that the MTP module has not processed, belong to the drafters.
    ``routed_experts`` is None where they are not recorded.
    """

    id: int
    request: Request
    row: SamplingMetadata
    tokens: list[int]
    drawn: list[int]
    block_hashes: BlockHasher | None = None
    images: ImageTokenFeatures | None = None
    all_stop_token_ids: frozenset[int] = frozenset()
    running: bool = False
    num_computed_tokens: int = 0
    pages: array[int] = field(default_factory=lambda: array("i"))
    first_page_token: int = 0
    num_hashed_pages: int = 0
    cached_tokens: int | None = None
    ngram_index: NgramIndex | None = None
    pending_hidden_ND: Tensor | None = None
    routed_experts: RoutedExpertsRecorder | None = None
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=lambda: [None])
    queue_key: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.queue_key = (-self.request.priority, self.id)

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next can be sampled: one while decoding."""
        return len(self.tokens) - self.num_computed_tokens

    @property
    def num_cacheable_tokens(self) -> int:
        """Tokens whose KV entries are all in the pages, those of the MTP module too, which lags by its pending tokens.

        The last hidden state is of use only with the next token, so that it is not missing.
        """
        return self.num_computed_tokens - max(
            (0 if self.pending_hidden_ND is None else len(self.pending_hidden_ND)) - 1, 0
        )

    @property
    def needs_prompt_logprobs(self) -> bool:
        """Whether log-probabilities of the prompt are asked for and not complete."""
        return self.request.params.prompt_logprobs is not None and len(self.prompt_logprobs) < len(self.request.prompt)

    def output(
        self,
        tokens: tuple[TokenLogprob, ...] = (),
        finish_reason: FinishReason | None = None,
        *,
        error: str | None = None,
        stop_token: TokenLogprob | None = None,
        with_prompt: bool = False,
    ) -> Output:
        """Make an output of this request; the last one, which has a reason, holds the routed experts."""
        asked = with_prompt and self.request.params.prompt_logprobs is not None
        return Output(
            request_id=self.id,
            tokens=tokens,
            finish_reason=finish_reason,
            prompt_logprobs=tuple(self.prompt_logprobs) if asked else None,
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self.cached_tokens or 0,
            error=error,
            stop_token=stop_token,
            routing=self._routing(stop_token) if finish_reason else None,
        )

    def _routing(self, stop_token: TokenLogprob | None) -> Tensor | None:
        """Return the experts of the tokens that were run: all where a stop token followed, else all but the last."""
        return (
            None if self.routed_experts is None else self.routed_experts.first(len(self.tokens) - (stop_token is None))
        )
