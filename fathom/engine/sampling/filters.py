"""Drawing from a vocabulary without sorting it.

X rows, Y blocks of the vocabulary, Z of its tokens; V may be what top-k left of it.

A number in [0, 1) picks the token in whose share of the cumulated weights it falls, in the order of ids: a rounding
error in the logits then moves every boundary by as little, where in order of likelihood it could swap two tokens.
Whether a token is among the likeliest that reach ``top_p`` is asked of the drawn token alone: it is if those ahead of
it weigh less. If it is not, one of those ahead is drawn, again by weight. What is accepted at last has the weights of
the tokens that pass, whatever was refused before, and no order of all tokens was needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import threshold

from fathom.spec.sampling import SamplingParams

_CHUNK = 256
_SMALLEST_TEMPERATURE = 1e-30  # far below any difference of float32 logits, and no division by zero
_HIGHEST_TEMPERATURE = 1e30  # and a finite float32


def top_k_ids(values_V: Tensor, count: int) -> Tensor:
    """Return the ids of the ``count`` highest float32 values, best first; of equal ones the lowest ids.

    Each of them lies in one of the ``count`` blocks with the highest maxima, ties going to the earlier block: that
    many tokens are ahead of whatever is in any other.
    """
    size, width = len(values_V), 64
    whole = size // width
    if whole <= 2 * count:
        return _first(values_V, torch.arange(size, device=values_V.device), count)
    head_V, offsets = values_V[: whole * width], torch.arange(width, device=values_V.device)
    maxima = head_V.view(whole, width).amax(-1)
    blocks = _first(maxima, torch.arange(whole, device=values_V.device), count)
    ids = torch.cat(
        [
            (blocks[:, None] * width + offsets).flatten(),
            torch.arange(whole * width, size, device=values_V.device),
        ]
    )
    return _first(values_V[ids], ids, count)


def _first(values_N: Tensor, ids_N: Tensor, count: int) -> Tensor:
    """Order by value, then by id, as one integer each: the bits of a float, made monotone, above the id."""
    bits_N = (values_N + 0.0).view(torch.int32).long()  # + 0.0 makes both zeros one
    ordered_N = torch.where(bits_N < 0, bits_N ^ 0x7FFFFFFF, bits_N)
    return ids_N[((ordered_N << 32) - ids_N).topk(count).indices]


def weights(
    logits_V: Tensor, best: float | Tensor, temperature: float | Tensor, *, out: Tensor | None = None
) -> Tensor:
    """Return exp((logit - best) / temperature), 1 for the best token; of rows too, with ``best`` (X, 1)."""
    differences_V = torch.sub(logits_V, best, out=out)
    if isinstance(temperature, Tensor):
        differences_V.div_(temperature.clamp(_SMALLEST_TEMPERATURE, _HIGHEST_TEMPERATURE))
    elif temperature != 1:
        differences_V.div_(min(max(temperature, _SMALLEST_TEMPERATURE), _HIGHEST_TEMPERATURE))
    return differences_V.exp_()


def masses(weights_V: Tensor) -> Tensor:
    """Return the sum of each block in float64; the last may be shorter than the others. Of rows too."""
    count, rest = divmod(weights_V.shape[-1], _CHUNK)
    head_V = weights_V[..., :-rest] if rest else weights_V
    sums = head_V.view(*weights_V.shape[:-1], count, _CHUNK).sum(-1)
    if rest:
        sums = torch.cat([sums, weights_V[..., -rest:].sum(-1, keepdim=True)], -1)
    return sums.double()


def is_unfiltered(params: SamplingParams, vocab: int) -> bool:
    """Whether ``params`` filter no token out: ``sample_unfiltered_rows`` then samples as ``sample_filtered`` does."""
    return params.temperature > 0 and not 0 < params.top_k < vocab and params.top_p >= 1 and params.min_p <= 0


def sample_unfiltered_rows(weights_XV: Tensor, masses_XY: Tensor, numbers: Sequence[float] | Tensor) -> Tensor:
    """Return the ids (X,) that ``sample_filtered`` draws with these numbers where no filter takes a token away.

    A row's id is that of the row alone, whatever is beside it.
    """
    ends_XY = masses_XY.cumsum(-1)
    if not isinstance(numbers, Tensor):
        numbers = torch.tensor(numbers, dtype=torch.float64, device=weights_XV.device)
    targets_X1 = numbers[:, None] * ends_XY[:, -1:]
    block_X1 = _holders(ends_XY, targets_X1)
    before_X1 = ends_XY.gather(-1, (block_X1 - 1).clamp_(min=0)).masked_fill_(block_X1 == 0, 0.0)
    ids_XZ = block_X1 * _CHUNK + torch.arange(_CHUNK, device=weights_XV.device)
    vocab = weights_XV.shape[-1]
    held_XZ = weights_XV.gather(-1, ids_XZ.clamp(max=vocab - 1)).masked_fill_(ids_XZ >= vocab, 0.0)
    inner_X1 = _holders(held_XZ.double().cumsum(-1), targets_X1 - before_X1)
    return (block_X1 * _CHUNK + inner_X1)[:, 0]


def sample_filtered(logits_V: Tensor, best: float, params: SamplingParams, number: Callable[[int], float]) -> int:
    """Draw a token id; ``number(trial)`` gives as many random numbers as it takes, usually one.

    Filters act in the order temperature, top-k, top-p, min-p. Of equally likely tokens the lowest ids pass first.
    """
    ids = None
    if 0 < params.top_k < len(logits_V):
        ids = top_k_ids(logits_V, params.top_k).sort().values
        logits_V = logits_V[ids]
    weights_V = weights(logits_V, best, params.temperature)
    enough = params.top_p * float(masses(weights_V).sum()) if params.top_p < 1 else torch.inf
    if params.min_p > 0:
        weights_V = threshold(weights_V, just_below(params.min_p), 0.0)
    trial = 0
    while True:
        index = _pick(weights_V, number(trial))
        if enough == torch.inf:
            break
        weight = float(weights_V[index])
        earlier, later = weights_V[:index], weights_V[index:]
        ahead_V = torch.cat([threshold(earlier, just_below(weight), 0.0), threshold(later, weight, 0.0)])
        if float(masses(ahead_V).sum()) < enough:
            break
        weights_V, trial = ahead_V, trial + 1
    return index if ids is None else int(ids[index])


def filter_top_p_min_p(weights_V: Tensor, params: SamplingParams) -> Tensor:
    """Return float64 weights after top-p and min-p, by sorting: what ``sample_filtered`` draws by, written plainly."""
    sorted_V, ids_V = weights_V.double().sort(descending=True, stable=True)
    passes_V = weights_V[ids_V] > just_below(params.min_p)
    if params.top_p < 1:
        passes_V &= sorted_V.cumsum(-1) - sorted_V < params.top_p * sorted_V.sum()
    return torch.zeros_like(sorted_V).scatter_(0, ids_V, sorted_V.where(passes_V, 0.0))


def just_below(value: float) -> float:
    """Return the next smaller float32, so that "at least" can be asked as "more than"."""
    return float(torch.nextafter(torch.tensor(value), torch.tensor(-1.0)))


def _pick(weights_V: Tensor, number: float) -> int:
    """Return the index in whose share of the cumulated weights ``number`` falls."""
    ends = masses(weights_V).cumsum(-1)
    target = number * float(ends[-1])
    block = _bucket(ends, target)
    rest = target - float(ends[block - 1]) if block else target
    start = block * _CHUNK
    return start + _bucket(weights_V[start : start + _CHUNK].double().cumsum(-1), rest)


def _bucket(ends: Tensor, target: float) -> int:
    """Return the first index with ``target`` below its end; what rounding put outside goes to the nearest with mass."""
    at = int(torch.searchsorted(ends, max(target, 0.0), right=True))
    return min(at, int(torch.searchsorted(ends, float(ends[-1]))))


def _holders(ends_XY: Tensor, targets_X1: Tensor) -> Tensor:
    """``_bucket`` of each row."""
    at_X1 = torch.searchsorted(ends_XY, targets_X1.clamp(min=0.0), right=True)
    return torch.minimum(at_X1, torch.searchsorted(ends_XY, ends_XY[:, -1:].contiguous()))
