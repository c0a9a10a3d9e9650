"""The tokens whose logits a request changes by penalties, biases and bans: few of the vocabulary."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from ctypes import addressof

import numpy as np
import torch
from torch import Tensor

from fathom.errors import SpecError
from fathom.kernels.native.drawing import ChangeStruct
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
        biases: dict[int, float] = {}
        for token, bias in params.logit_bias:
            if token >= vocab:
                problem = f"token {token} is outside the vocabulary of {vocab}"
                raise SpecError("logit_bias", problem, "use this model's token ids")
            biases[token] = biases.get(token, 0.0) + max(min(bias, _HIGHEST), -_HIGHEST)
        seen = dict.fromkeys(prompt if params.repetition_penalty != 1 else ())
        self._ids = array("i", {**seen, **biases})  # tokens that may change: the prompt's, biased ones, drawn ones
        self._counts = array("i", [0]) * len(self._ids)  # how often each was drawn
        self._index = {token: index for index, token in enumerate(self._ids)}
        self._num_prompt, self._counted = len(seen), 0
        self._biases = array("f", [biases.get(token, 0.0) for token in self._ids])
        self._banned = array("i", [token for token in ends if 0 <= token < vocab])
        self._struct = self._new_struct()

    def copy(self) -> LogitChanges:
        """Return an independent copy."""
        later = LogitChanges.__new__(LogitChanges)
        later.__dict__.update(self.__dict__)
        later._index, later._ids, later._counts = dict(self._index), self._ids[:], self._counts[:]
        later._struct = later._new_struct()
        return later

    def apply(self, logits_V: Tensor, drawn: Sequence[int]) -> None:
        """Write the new logits in place; ``drawn`` may only grow."""
        params, device = self._params, logits_V.device
        self._count(drawn)
        ids_N = torch.from_numpy(np.array(self._ids, dtype=np.int64)).to(device)
        counts_N = torch.from_numpy(np.array(self._counts, dtype=np.float64)).to(device)
        values_N, drawn_N = logits_V[ids_N], (counts_N > 0).double()
        if params.repetition_penalty != 1:
            penalty, seen_N = params.repetition_penalty, counts_N > 0
            seen_N[: self._num_prompt] = True
            penalised_N = torch.where(values_N > 0, values_N / penalty, values_N * penalty)
            values_N = torch.where(seen_N, penalised_N, values_N)
        values_N -= (params.presence_penalty * drawn_N + params.frequency_penalty * counts_N).to(values_N)
        values_N[: len(self._biases)] += torch.tensor(self._biases).to(values_N)
        logits_V[ids_N] = values_N.clamp_(max=_HIGHEST)
        if len(drawn) < params.min_tokens:
            logits_V[torch.tensor(self._banned, dtype=torch.long, device=device)] = -torch.inf

    def address(self, drawn: Sequence[int]) -> int:
        """Return the address of what the native library applies as ``apply`` does, until the next call."""
        self._count(drawn)
        if self._struct.count != len(self._ids):
            self._point()
        self._struct.bans = len(self._banned) if len(drawn) < self._params.min_tokens else 0
        return addressof(self._struct)

    def _count(self, drawn: Sequence[int]) -> None:
        for token in drawn[self._counted :]:
            index = self._index.setdefault(token, len(self._ids))
            if index == len(self._ids):
                self._ids.append(token)
                self._counts.append(0)
            self._counts[index] += 1
        self._counted = len(drawn)

    def _new_struct(self) -> ChangeStruct:
        params = self._params
        return ChangeStruct(
            biases=self._biases.buffer_info()[0],
            banned=self._banned.buffer_info()[0],
            prompt=self._num_prompt,
            biased=len(self._biases),
            repetition=params.repetition_penalty,
            presence=params.presence_penalty,
            frequency=params.frequency_penalty,
        )

    def _point(self) -> None:
        """Follow the tokens, which move when there are more of them."""
        self._struct.ids, self._struct.count = self._ids.buffer_info()
        self._struct.counts = self._counts.buffer_info()[0]
