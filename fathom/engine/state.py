"""One request on its way through the engine.

N tokens, D hidden size.
"""

from __future__ import annotations

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
    """What the engine knows of a request.

    ``tokens`` are the prompt and what was drawn; the first ``computed`` of them are in ``pages``, which begin with
    token ``first``, and the first ``named`` pages have names. Ids follow arrival. ``names`` is None where pages are not
    shared. ``drawn``, which is also ``row.drawn``, grows with what is drawn; a token of ``stops`` ends the answer.
    ``history`` and ``pending_hidden_ND``, the latest hidden states that the MTP module has not read, are their
    drafters' own. ``routes`` is None where nobody records them.
    """

    id: int
    request: Request
    row: SamplingMetadata
    tokens: list[int]
    drawn: list[int]
    names: BlockHasher | None = None
    images: ImageTokenFeatures | None = None
    stops: frozenset[int] = frozenset()
    running: bool = False
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    first: int = 0
    named: int = 0
    cached_tokens: int | None = None
    history: NgramIndex | None = None
    pending_hidden_ND: Tensor | None = None
    routes: RoutedExpertsRecorder | None = None
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=lambda: [None])
    rank: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.rank = (-self.request.priority, self.id)

    @property
    def remaining(self) -> int:
        """Tokens still to be run before the next can be drawn: one while decoding."""
        return len(self.tokens) - self.computed

    @property
    def complete(self) -> int:
        """Tokens that have all their numbers in the pages, the MTP module's too: it is late by those it has not read.

        The last hidden state is of use only with the next token, so that it is not missing.
        """
        return self.computed - max((0 if self.pending_hidden_ND is None else len(self.pending_hidden_ND)) - 1, 0)

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
        """Make an output of this request; the last one, which has a reason, tells where its tokens went."""
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
        return None if self.routes is None else self.routes.first(len(self.tokens) - (stop_token is None))
