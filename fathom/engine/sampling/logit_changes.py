"""The tokens whose logits a request changes by penalties, biases and bans: few of the vocabulary."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from fathom.errors import SpecError
from fathom.spec.sampling import SamplingParams

_HIGHEST = 3e38  # biases and penalties lift no logit beyond float32


class LogitChanges:
    """What one request's parameters do to the logits of single tokens, as its answer grows.

    In this order: repetition penalty, presence and frequency penalty, logit bias, and the ban of ``ends`` before
    ``min_tokens``.

    Raises:
        SpecError: ``logit_bias`` names a token outside the vocabulary.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], ends: Collection[int], vocab: int) -> None:
        self._params = params
        self._index: dict[int, int] = {}  # of each token that may change; prompt, biases and ends before drawn ones
        self._ids, self._counts = array("q"), array("d")  # the tokens, and how often each was drawn
        self._counted = 0
        biases: dict[int, float] = {}
        for token, bias in params.logit_bias:
            if token >= vocab:
                problem = f"token {token} is outside the vocabulary of {vocab}"
                raise SpecError("logit_bias", problem, "use this model's token ids")
            biases[token] = biases.get(token, 0.0) + max(min(bias, _HIGHEST), -_HIGHEST)
        for token in prompt if params.repetition_penalty != 1 else ():
            self._place(token)
        self._num_prompt = len(self._index)
        ends = [token for token in ends if 0 <= token < vocab] if params.min_tokens else []
        self._ends = [self._place(token) for token in ends]
        for token in biases:
            self._place(token)
        self._biases_N = torch.tensor([biases.get(token, 0.0) for token in self._ids], dtype=torch.float64)

    def copy(self) -> LogitChanges:
        """Return an independent copy."""
        later = LogitChanges.__new__(LogitChanges)
        later.__dict__.update(self.__dict__)
        later._index, later._ids, later._counts = dict(self._index), self._ids[:], self._counts[:]
        return later

    def apply(self, logits_V: Tensor, drawn: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the tokens that may change (N,) and their new logits (N,); ``drawn`` may only grow."""
        params, device = self._params, logits_V.device
        for token in drawn[self._counted :]:
            self._counts[self._place(token)] += 1
        self._counted = len(drawn)
        ids_N = torch.from_numpy(np.array(self._ids)).to(device)
        counts_N = torch.from_numpy(np.array(self._counts)).to(device)
        values_N = logits_V[ids_N]
        if params.repetition_penalty != 1:
            penalty, seen_N = params.repetition_penalty, counts_N > 0
            seen_N[: self._num_prompt] = True
            penalised_N = torch.where(values_N > 0, values_N / penalty, values_N * penalty)
            values_N = torch.where(seen_N, penalised_N, values_N)
        if params.presence_penalty or params.frequency_penalty:
            penalties_N = params.presence_penalty * (counts_N > 0) + params.frequency_penalty * counts_N
            values_N -= penalties_N.to(values_N)
        if params.logit_bias:
            values_N[: len(self._biases_N)] += self._biases_N.to(values_N)
        values_N.clamp_(max=_HIGHEST)
        if len(drawn) < params.min_tokens:
            values_N[self._ends] = -torch.inf
        return ids_N, values_N

    def _place(self, token: int) -> int:
        index = self._index.setdefault(token, len(self._index))
        if index == len(self._ids):
            self._ids.append(token)
            self._counts.append(0.0)
        return index
