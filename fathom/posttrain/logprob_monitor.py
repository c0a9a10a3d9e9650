"""Whether the trainer computes the log-probabilities that answers were sampled with. N tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DEFAULT_BOUNDS = {torch.float32: 0.05, torch.bfloat16: 5.0}
"""The largest difference of a token's log-probabilities, in nats, that is rounding; by the precision of products.

Measured over 1,600 to 3,200 sampled tokens each of the quickstart's SFT model and of random models of 8 and 12 layers
whose logits reach 5 to 24: in float32 at most 6e-5; in bfloat16, sampled and trained under autocast alike, at most 1.3
with a 99th percentile of 0.36 at the largest logits, and 0.16 and 0.05 for the quickstart.
"""

P99_SHARE = 0.1
"""The bound on the 99th percentile, as a share of the bound on the maximum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobDifference:
    """How far tokens' log-probabilities as sampled and as trained lie apart, in nats; all 0 where there are none."""

    mean: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    maximum: float = 0.0

    @classmethod
    def of(cls, difference_N: Tensor) -> LogprobDifference:
        """Summarise absolute differences; a percentile is the smallest value that as many of the tokens stay below."""
        count = difference_N.numel()
        if not count:
            return cls()
        ordered_N = difference_N.double().sort().values
        ranks = [min(int(share * count), count - 1) for share in (0.5, 0.99)]
        at_2 = ordered_N[torch.tensor([*ranks, count - 1], device=ordered_N.device)]
        mean, p50, p99, maximum = torch.cat((ordered_N.mean()[None], at_2)).tolist()
        return cls(mean=mean, p50=p50, p99=p99, maximum=maximum)

    def exceeds(self, bound: float) -> bool:
        """Whether the maximum exceeds ``bound``, or the 99th percentile a tenth of it; true of what is no number.

        Two statistics, since faults are of two kinds. A sampler of other weights or temperature moves most tokens, so
        that a percentile shows it however long the tail is. One answer computed wrongly, from a broken page for
        instance, moves few tokens far, which the maximum shows. In low precision the maximum has a long tail: logits
        of size 16 are rounded to 1/8, and a token whose experts' scores are nearly equal may be routed otherwise.
        """
        return not (self.maximum <= bound and self.p99 <= P99_SHARE * bound)

    def values(self) -> dict[str, float]:
        """Return what to log, by name."""
        return {
            "logprob_difference": self.maximum,
            "logprob_difference_mean": self.mean,
            "logprob_difference_p50": self.p50,
            "logprob_difference_p99": self.p99,
        }


class LogprobMonitor:
    """Collects differences of log-probabilities over the micro-batches of a step, on their device."""

    def __init__(self) -> None:
        self._differences: list[Tensor] = []

    def reset(self) -> None:
        """Forget what was collected."""
        self._differences.clear()

    def observe(self, computed_N: Tensor, sampled_N: Tensor) -> None:
        """Compare log-probabilities as the trainer computes them with those the answers were drawn with."""
        self._differences.append((computed_N.detach().float() - sampled_N.float()).abs())

    @property
    def difference(self) -> LogprobDifference:
        """What was collected, in numbers; waits for the device."""
        return LogprobDifference.of(torch.cat(self._differences)) if self._differences else LogprobDifference()
