"""Measurements of a step: expert load, bits per byte by source, speed against the machine's, memory.

X sources.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.kernels.products import product
from fathom.model.moe.balance import load_entropy, max_load

COLLAPSED_SHARE = 0.75
_WARM_UP, _ROUNDS, _MATRIX = 1, 3, 1024
# Dense bfloat16 products, FLOP/s, from the makers' data sheets; looked up by a part of the device's name.
_GPU_PEAKS: tuple[tuple[str, float], ...] = (
    ("B200", 2.25e15),
    ("H200", 9.89e14),
    ("H100 PCIe", 7.56e14),
    ("H100", 9.89e14),
    ("A100", 3.12e14),
    ("L40S", 3.62e14),
    ("L4", 1.21e14),
    ("RTX 4090", 1.65e14),
    ("RTX 3090", 7.1e13),
)


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """How evenly one step's tokens met the experts, by layer.

    ``fractions`` (L x E) are shares of a layer's pairs of token and expert. ``entropy`` (L) is that of the shares over
    ln E: 1 is even. ``peak`` (L) is the largest share over the mean.
    """

    fractions: list[list[float]]
    entropy: list[float]
    peak: list[float]

    @classmethod
    def of(cls, counts_LE: Tensor) -> ExpertLoad:
        """From how often each expert was chosen, int64 (L, E)."""
        shares_LE = counts_LE.double() / counts_LE.sum(1, keepdim=True).clamp(min=1)
        entropy_L = torch.stack([load_entropy(counts_E) for counts_E in counts_LE])
        peak_L = torch.stack([max_load(counts_E) for counts_E in counts_LE])
        return cls(shares_LE.tolist(), entropy_L.tolist(), peak_L.tolist())

    def collapsed(self, experts_per_token: int) -> list[int]:
        """Layers (counted among the mixtures) where few experts do all the work.

        The effective number of experts, e to the entropy, lies between K when all tokens choose the same K and E when
        the load is even; below their geometric mean sqrt(K E) a router counts as collapsed. It does too where the
        busiest K do more than ``COLLAPSED_SHARE`` of the work, if they are at most half of all.
        """
        experts = len(self.fractions[0])
        if experts <= experts_per_token:
            return []
        bound = 0.5 * (1.0 + math.log(experts_per_token) / math.log(experts))
        few = [sum(sorted(shares)[-experts_per_token:]) > COLLAPSED_SHARE for shares in self.fractions]
        return [
            layer
            for layer, entropy in enumerate(self.entropy)
            if entropy < bound or (few[layer] and 2 * experts_per_token <= experts)
        ]


def bits_per_byte(
    nats_X: list[float], tokens_X: list[int], bytes_per_token: Mapping[str, float]
) -> tuple[float | None, dict[str, float]]:
    """Loss in bits per byte of text, over all sources and by source: nats / ln 2 / bytes.

    ``nats_X`` and ``tokens_X`` are sums over the step in the order of ``bytes_per_token``. Sources of which the step
    held nothing are left out; the first value is None when it held none at all.
    """
    by_source: dict[str, float] = {}
    bits = size = 0.0
    for (name, per_token), nats, tokens in zip(bytes_per_token.items(), nats_X, tokens_X, strict=True):
        if tokens:
            by_source[name] = nats / math.log(2) / (tokens * per_token)
            bits += nats / math.log(2)
            size += tokens * per_token
    return (bits / size if size else None), by_source


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of matrix products this device can reach: timed on a CPU, from a table on a GPU, None where unknown.

    On a CPU the best of a few products of 1024 x 1024 in ``dtype``, by the library that trains; a tenth of a second.
    No random number is drawn.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        return next((peak for part, peak in _GPU_PEAKS if part in name), None)
    if device.type != "cpu":
        return None
    left = torch.full((_MATRIX, _MATRIX), 0.5, dtype=dtype)
    best = math.inf
    for _ in range(_WARM_UP + _ROUNDS):
        start = time.perf_counter()
        product(left, left)
        best = min(best, time.perf_counter() - start)
    return 2.0 * _MATRIX**3 / best


def peak_memory(device: torch.device) -> int | None:
    """Most bytes held so far: allocated on a GPU, resident in the process otherwise; None where unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return None
    import resource

    units = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * units
