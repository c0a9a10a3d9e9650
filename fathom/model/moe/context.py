"""What a router takes beyond its input: sequences exempt from dropping, seeds, token ids, forced experts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from fathom.model import counter_rng as draws


@dataclass(frozen=True, slots=True)
class RoutingContext:
    """Routing inputs of one forward pass; without one, nothing is dropped by budget and nothing is drawn.

    ``exempt_B`` (bool) marks sequences that never lose a token to a device's budget (V2 §2.2.4). ``seeds_B`` (int64),
    one per sequence, seed the draws of training: the same seeds give the same draws, recomputed or not. ``tokens_BT``
    are token ids, which hash routing alone needs. ``forced_BTK`` (int64) are the experts that each token of this layer
    is sent to, best first; a token with -1 among them is routed by the router.
    """

    exempt_B: Tensor | None = None
    seeds_B: Tensor | None = None
    tokens_BT: Tensor | None = None
    forced_BTK: Tensor | None = None

    def at(self, layer: int, forced_BTK: Tensor | None = None) -> RoutingContext:
        """The context of layer ``layer``: with seeds, and forced experts, of its own."""
        if self.seeds_B is None and forced_BTK is self.forced_BTK:
            return self
        seeds_B = None if self.seeds_B is None else draws.fold_in(self.seeds_B, layer)
        return replace(self, seeds_B=seeds_B, forced_BTK=forced_BTK)
