"""One step's forward pass over the packed tokens of its requests, and sampling.

X rows whose logits are wanted, Y values of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from fathom.engine.drafting.drafter import Drafter
from fathom.engine.forward_pass import ForwardPass
from fathom.engine.routed_experts import RoutedExpertsRecorder
from fathom.engine.sampling.acceptance import accept_drafts, draft_metadata
from fathom.engine.sampling.draw import SamplingFailure, SamplingMetadata, prompt_logprobs, try_draw
from fathom.engine.sampling.native import NativeSampler, all_finite
from fathom.engine.scheduler import ScheduledRequest
from fathom.engine.state import RequestState
from fathom.kernels.native import library
from fathom.model.cache import SequenceChunk
from fathom.model.native import StepOutput
from fathom.spec.sampling import TokenLogprob

_PROMPT_LOGPROB_CHUNK = 64  # rows of a prompt whose logits exist at one time
_NOT_FINITE = "the model's hidden states are not finite; its weights are damaged or their precision is too low"


@dataclass(slots=True)
class _BatchEntry:
    """One request's share of a pass: ``ids`` are its tokens, then drafts.

    ``rows`` are what drawing needs behind its last token and behind each draft; none while it reads its prompt.
    """

    work: ScheduledRequest
    ids: list[int]
    rows: list[SamplingMetadata]

    @property
    def state(self) -> RequestState:
        return self.work.state

    @property
    def adapter(self) -> str | None:
        return self.state.request.adapter

    @property
    def drafts(self) -> list[int]:
        return self.ids[self.work.tokens :]

    def num_kept(self, drawn: Sequence[TokenLogprob]) -> int:
        """Tokens of the entry that the request keeps: its own, and the drafts before the last that was drawn."""
        return self.work.tokens + max(len(drawn) - 1, 0)


class ModelRunner:
    """Runs a step's work on the model and samples the next tokens of requests that are prefilled."""

    def __init__(self, forward: ForwardPass, drafter: Drafter, *, unused_ids_N: Tensor | None = None) -> None:
        self._forward = forward
        self._drafter = drafter
        self._unused_ids_N = unused_ids_N
        native = forward.model.device.type == "cpu" and library.available()
        vocab = forward.model.spec.vocab_size
        self._sampler = NativeSampler(vocab, unused_ids_N, threads=forward.threads) if native else None
        self.adapted: dict[str, ForwardPass] = {}
        """Passes of the model with each adapter that requests may name; they share its weights."""
        self.drafted = self.accepted = 0

    def run(self, scheduled: Sequence[ScheduledRequest]) -> dict[int, Sequence[TokenLogprob] | SamplingFailure]:
        """Return the next tokens, or what is wrong, by request id; requests with more prompt to prefill have neither.

        They are several where drafts were accepted: as many more of the request's tokens are computed then.
        """
        entries = self._batch_entries(scheduled)
        output = self._run_passes(entries)
        result: dict[int, Sequence[TokenLogprob] | SamplingFailure] = {}
        decoding = len(entries) == len(output.hidden_ND) == len(output.logits_XV)
        if not decoding:
            result = self._find_nonfinite(entries, output.hidden_ND)
        if any(entry.state.needs_prompt_logprobs for entry in entries):
            for entry, part_ND in _parts(entries, output.hidden_ND):
                if entry.state.needs_prompt_logprobs and entry.state.id not in result:
                    self._score_prompt(entry.work, part_ND)
        self._draw(entries, output.logits_XV, result)
        if decoding and any(isinstance(drawn, SamplingFailure) for drawn in result.values()):
            # where every token's logits were read, hidden states were: what is not finite makes them so
            result |= self._find_nonfinite(entries, output.hidden_ND)
        if self._drafter.observes:
            self._update_drafter(entries, output.hidden_ND, result)
        if output.routes_NLK is not None:
            self._record(entries, output.routes_NLK, result)
        return result

    def _sample(self, logits_BV: Tensor, rows: Sequence[SamplingMetadata]) -> list[TokenLogprob | SamplingFailure]:
        if self._sampler is None:
            return try_draw(logits_BV, rows, unused_ids_N=self._unused_ids_N)
        return self._sampler.draw(logits_BV, rows)

    def _draw(
        self,
        entries: Sequence[_BatchEntry],
        logits_XV: Tensor,
        result: dict[int, Sequence[TokenLogprob] | SamplingFailure],
    ) -> None:
        """Add the next tokens of the requests that are prefilled and have not failed."""
        drawing = [entry for entry in entries if entry.rows and entry.work.state.id not in result]
        if not drawing:
            return
        each = [row for entry in drawing for row in entry.rows]
        if len(each) < len(logits_XV):
            kept = [entry.state.id not in result for entry in entries for _ in entry.rows]
            logits_XV = logits_XV[torch.tensor(kept, device=logits_XV.device)]
        drawn = self._sample(logits_XV, each)
        if len(each) == len(drawing):  # no drafts
            for entry, token in zip(drawing, drawn, strict=True):
                result[entry.work.state.id] = token if isinstance(token, SamplingFailure) else (token,)
            return
        left = iter(drawn)
        for entry in drawing:
            result[entry.state.id] = self._accept(entry, [next(left) for _ in entry.rows])

    def _batch_entries(self, scheduled: Sequence[ScheduledRequest]) -> list[_BatchEntry]:
        """Add drafts to the scheduled and put them into the order of the pass."""
        drafts = self._drafter.propose(scheduled)
        entries = []
        for work in scheduled:
            state = work.state
            ids, rows = state.tokens[state.num_computed_tokens : work.end], []
            if work.end == len(state.tokens):
                proposed = drafts.get(state.id, ())
                rows = draft_metadata(state.row, proposed) if proposed else [state.row]
                ids += proposed[: len(rows) - 1]
            entries.append(_BatchEntry(work, ids, rows))
        if len(entries) > 1:
            entries.sort(key=_pass_order)
        return entries

    def _accept(
        self, entry: _BatchEntry, drawn: Sequence[TokenLogprob | SamplingFailure]
    ) -> Sequence[TokenLogprob] | SamplingFailure:
        """Return the tokens that stay. Where one cannot be sampled, those before it stay, and the next step fails."""
        good: list[TokenLogprob] = []
        for each in drawn:
            if isinstance(each, SamplingFailure):
                break
            good.append(each)
        if not good:
            return drawn[0] if isinstance(drawn[0], SamplingFailure) else good
        kept = accept_drafts(good, entry.drafts[: len(good) - 1])
        self.drafted += len(entry.drafts)
        self.accepted += len(kept) - 1
        return kept

    def _update_drafter(
        self,
        entries: Sequence[_BatchEntry],
        hidden_ND: Tensor,
        result: dict[int, Sequence[TokenLogprob] | SamplingFailure],
    ) -> None:
        states, kept_ND = [], []
        for entry, part_ND in _parts(entries, hidden_ND):
            drawn = result.get(entry.state.id, ())
            if not isinstance(drawn, SamplingFailure):
                states.append(entry.state)
                kept_ND.append(part_ND[: entry.num_kept(drawn)])
        self._drafter.observe(states, kept_ND)

    def _record(
        self,
        entries: Sequence[_BatchEntry],
        routes_NLK: Tensor,
        result: dict[int, Sequence[TokenLogprob] | SamplingFailure],
    ) -> None:
        """Record the experts of the tokens that are kept."""
        for entry, part_NLK in _parts(entries, routes_NLK):
            state, drawn = entry.state, result.get(entry.state.id, ())
            if isinstance(drawn, SamplingFailure):
                continue
            if state.routed_experts is None:
                state.routed_experts = RoutedExpertsRecorder(*part_NLK.shape[1:])
            state.routed_experts.write(state.num_computed_tokens, part_NLK[: entry.num_kept(drawn)])

    def passes(self, adapter: str | None) -> ForwardPass:
        """Return the passes of the model with an adapter, or without one."""
        return self._forward if adapter is None else self.adapted[adapter]

    def _run_passes(self, entries: Sequence[_BatchEntry]) -> StepOutput:
        """Run the step's tokens, those of each adapter in a pass of its own."""
        found = []
        for adapter, group in groupby(entries, key=lambda entry: entry.adapter):
            those = list(group)
            chunks, tokens, rows = [], list[int](), list[int]()
            for entry in those:
                state = entry.state
                chunks.append(
                    SequenceChunk(state.pages, state.num_computed_tokens, len(entry.ids), state.first_page_token)
                )
                tokens += entry.ids
                rows += range(len(tokens) - len(entry.rows), len(tokens))
            found.append(self.passes(adapter).run(tokens, chunks, rows, self._features(those)))
        if len(found) == 1:
            return found[0]
        routes = [output.routes_NLK for output in found if output.routes_NLK is not None]
        return StepOutput(
            torch.cat([output.hidden_ND for output in found]),
            torch.cat([output.logits_XV for output in found]),
            torch.cat(routes) if routes else None,
        )

    def _find_nonfinite(
        self, entries: Sequence[_BatchEntry], hidden_ND: Tensor
    ) -> dict[int, Sequence[TokenLogprob] | SamplingFailure]:
        """Find requests whose KV entries in the pool are not finite: each token attends to itself."""
        result: dict[int, Sequence[TokenLogprob] | SamplingFailure] = {}
        finite = hidden_ND.sum(dtype=torch.float32).isfinite() if self._sampler is None else all_finite(hidden_ND)
        if not finite:
            for entry, part_ND in _parts(entries, hidden_ND):
                if not part_ND.isfinite().all():
                    result[entry.state.id] = SamplingFailure("logits", _NOT_FINITE)
        return result

    def _score_prompt(self, work: ScheduledRequest, hidden_ND: Tensor) -> None:
        """Append the log-probabilities of the prompt's tokens that this chunk predicts."""
        state = work.state
        prompt, top = state.request.prompt, state.request.params.prompt_logprobs or 0
        start, stop = len(state.prompt_logprobs) - 1, min(work.end, len(prompt) - 1)
        for low in range(start, stop, _PROMPT_LOGPROB_CHUNK):
            high = min(low + _PROMPT_LOGPROB_CHUNK, stop)
            next_ids_N = torch.tensor(prompt[low + 1 : high + 1], device=hidden_ND.device)
            logits_NV = self.passes(state.request.adapter).logits(
                hidden_ND[low - state.num_computed_tokens : high - state.num_computed_tokens]
            )
            state.prompt_logprobs += prompt_logprobs(logits_NV, next_ids_N, top, unused_ids_N=self._unused_ids_N)

    def _features(self, entries: Sequence[_BatchEntry]) -> Tensor | None:
        """Return a row for every image token of the step, None where no prompt has its images in it.

        An image token that was drawn or drafted is a token like any other: its row is its embedding.
        """
        model = self._forward.model
        vision = model.spec.vision
        if vision is None:
            return None
        each = [entry.work for entry in entries]
        given = [w.state.images.rows(w.state.num_computed_tokens, w.end) for w in each if w.state.images is not None]
        if not any(len(rows_ND) for rows_ND in given):
            return None
        drawn_1D = model.embed(torch.tensor([vision.image_token_id], device=model.device)).to(given[0])
        rows, images = [], iter(given)
        for entry in entries:
            state = entry.state
            if state.images is not None:
                rows.append(next(images))
            prompt_left = max(len(state.request.prompt) - state.num_computed_tokens, 0)
            rows += [drawn_1D] * entry.ids[prompt_left:].count(vision.image_token_id)
        return torch.cat(rows)


def _pass_order(entry: _BatchEntry) -> tuple[str, int, int]:
    """By adapter, so that each has one pass; then as attention groups sequences."""
    return entry.adapter or "", len(entry.ids), entry.work.end


def _parts(entries: Sequence[_BatchEntry], packed_NY: Tensor) -> Iterator[tuple[_BatchEntry, Tensor]]:
    """Yield each entry with its rows of a pass."""
    return zip(entries, packed_NY.split_with_sizes([len(entry.ids) for entry in entries]), strict=True)
