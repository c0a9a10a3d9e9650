"""One step's forward pass: requests' tokens laid end to end, and what is read off its end.

N tokens of the step, D hidden size, B rows that draw, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.engine.sampling import RowFailure, prompt_logprobs, try_draw
from fathom.engine.scheduler import Work
from fathom.model.cache import PagedStep, PagePool, Slice
from fathom.model.compiled import CompiledDecoding
from fathom.model.decoder import Decoder
from fathom.spec.sampling import TokenLogprob

_SCORED_TOGETHER = 64  # rows of a prompt whose logits exist at one time
_NOT_FINITE = "the model's hidden states are not finite; its weights are damaged or their precision is too low"


class Forward:
    """Runs a step's work on the model and draws where a request has come to its end."""

    def __init__(self, model: Decoder, pool: PagePool, *, compiled: CompiledDecoding | None = None) -> None:
        self._model = model
        self._pool = pool
        self._compiled = compiled

    def run(self, works: list[Work]) -> dict[int, TokenLogprob | RowFailure]:
        """Return the next token, or what is wrong, by request id; requests with more prompt to read have neither.

        ``works`` are put into the order of the pass.
        """
        works.sort(key=lambda work: (work.tokens, work.end))
        tokens = [token for work in works for token in work.state.tokens[work.state.computed : work.end]]
        slices = [Slice(work.state.pages, work.state.computed, work.tokens, work.state.first) for work in works]
        hidden_ND = self._hidden(tokens, slices, self._features(works))
        result = self._unhealthy(works, hidden_ND)
        rows, drawing, row = [], [], 0
        for work in works:
            state = work.state
            if state.id not in result:
                if state.unscored:
                    self._score_prompt(work, hidden_ND[row : row + work.tokens])
                if work.end == len(state.tokens):
                    rows.append(row + work.tokens - 1)
                    drawing.append(state)
            row += work.tokens
        if drawing:
            last_BD = hidden_ND if len(rows) == row else hidden_ND[torch.tensor(rows, device=hidden_ND.device)]
            drawn = try_draw(self._model.logits(last_BD), [state.row for state in drawing])
            result.update((state.id, each) for state, each in zip(drawing, drawn, strict=True))
        return result

    def _hidden(self, tokens: Sequence[int], slices: Sequence[Slice], features_ND: Tensor | None) -> Tensor:
        """Run the model over a step's tokens, (N, D)."""
        if self._compiled is not None and len(tokens) == 1 and features_ND is None:
            return self._compiled(tokens[0], slices[0])
        step = PagedStep(self._pool, slices, window=self._model.window)
        tokens_1N = torch.tensor([tokens], device=self._pool.device)
        return self._model(tokens_1N, cache=step, features_ND=features_ND).hidden_BTD[0]  # type: ignore[no-any-return]

    def _unhealthy(self, works: Sequence[Work], hidden_ND: Tensor) -> dict[int, TokenLogprob | RowFailure]:
        """Find requests that left numbers in the pool which are not finite: each token attends to itself."""
        result: dict[int, TokenLogprob | RowFailure] = {}
        if not hidden_ND.sum(dtype=torch.float32).isfinite():
            parts = hidden_ND.split_with_sizes([work.tokens for work in works])
            for work, part_ND in zip(works, parts, strict=True):
                if not part_ND.isfinite().all():
                    result[work.state.id] = RowFailure("logits", _NOT_FINITE)
        return result

    def _score_prompt(self, work: Work, hidden_ND: Tensor) -> None:
        """Append the log-probabilities of the prompt's tokens that this chunk predicts."""
        state = work.state
        prompt, top = state.request.prompt, state.request.params.prompt_logprobs or 0
        start, stop = len(state.prompt_logprobs) - 1, min(work.end, len(prompt) - 1)
        for low in range(start, stop, _SCORED_TOGETHER):
            high = min(low + _SCORED_TOGETHER, stop)
            next_ids_N = torch.tensor(prompt[low + 1 : high + 1], device=hidden_ND.device)
            logits_NV = self._model.logits(hidden_ND[low - state.computed : high - state.computed])
            state.prompt_logprobs += prompt_logprobs(logits_NV, next_ids_N, top)

    def _features(self, works: Sequence[Work]) -> Tensor | None:
        """Return a row for every image token of the step, None where no prompt has its images in it.

        An image token that was drawn is a token like any other: its row is its embedding.
        """
        vision = self._model.spec.vision
        given = [w.state.images.rows(w.state.computed, w.end) for w in works if w.state.images is not None]
        if vision is None or not any(len(rows_ND) for rows_ND in given):
            return None
        drawn_1D = self._model.embed_tokens.weight[vision.image_token_id][None].to(given[0])
        rows, images = [], iter(given)
        for work in works:
            state = work.state
            if state.images is not None:
                rows.append(next(images))
            begun = max(state.computed - len(state.request.prompt), 0)
            ended = max(work.end - len(state.request.prompt), 0)
            rows += [drawn_1D] * state.drawn[begun:ended].count(vision.image_token_id)
        return torch.cat(rows)
