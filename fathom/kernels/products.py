"""Products of float32 matrices of many rows, by the library that was measured to be faster on this processor.

PyTorch's own functions take the BLAS it was built with. oneDNN, which it holds as well, is reached through one of its
operators. Both are exact to rounding alike.

X outputs, Y inputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from fathom.errors import SpecError
from fathom.products import VARIABLE, ProductChoice, choice_of, forced_choice

_LEAST_MULTIPLY_ADDS = 2**22
"""Below, the operator's own cost counts for more than what a library gains."""
_LEAST_ROWS = 16
_ROWS, _SIZE = 1024, 512
_MEASURED_SECONDS = 0.4
_ROUNDS = 2
_LARGEST_ERROR = 1e-4


def product(left_NY: Tensor, right_YX: Tensor, out: Tensor | None = None) -> Tensor:
    """Return left right, (N, X), in ``out`` where it is given, converted to its dtype. It has no gradient."""
    if _prefers_onednn(left_NY, right_YX):
        found_NX = _onednn(left_NY, right_YX)
    elif out is None or out.dtype == left_NY.dtype:
        return torch.mm(left_NY, right_YX, out=out)
    else:
        found_NX = torch.mm(left_NY, right_YX)
    return found_NX if out is None else out.copy_(found_NX)


def add_product(total_NX: Tensor, left_NY: Tensor, right_YX: Tensor) -> Tensor:
    """Add left right to ``total``, in place, whatever its dtype. It has no gradient."""
    if total_NX.dtype != left_NY.dtype or _prefers_onednn(left_NY, right_YX):
        return total_NX.add_(product(left_NY, right_YX))
    return total_NX.addmm_(left_NY, right_YX)


def _prefers_onednn(left_NY: Tensor, right_YX: Tensor) -> bool:
    """Whether oneDNN computes this product: a large one of float32 on a processor where it is faster."""
    rows, inputs = left_NY.shape
    if rows < _LEAST_ROWS or not are_float32_on_cpu(left_NY, right_YX):
        return False
    return onednn_is_faster(rows, inputs, right_YX.shape[1]) and is_dense(right_YX)


def is_dense(right_YX: Tensor) -> bool:
    """Whether a factor's numbers lie without gaps: with gaps oneDNN falls back to a loop, a thousand times slower."""
    return right_YX.is_contiguous() or right_YX.t().is_contiguous()


def are_float32_on_cpu(left: Tensor, right: Tensor) -> bool:
    """Whether oneDNN can take these tensors; nothing that torch.compile traces, which chooses for itself."""
    if left.dtype != torch.float32 or right.dtype != torch.float32 or left.device.type != "cpu":
        return False
    return not torch.compiler.is_compiling()


def onednn_is_faster(rows: int, inputs: int, outputs: int) -> bool:
    """Whether a product is large enough for oneDNN, and oneDNN faster on this processor."""
    if rows * inputs * outputs < _LEAST_MULTIPLY_ADDS or min(rows, inputs, outputs) < _LEAST_ROWS:
        return False
    return product_choice().library == "onednn"


def has_native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; without, such products are many times slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@lru_cache(maxsize=1)
def product_choice() -> ProductChoice:
    """Return the choice for this processor and version of PyTorch; it is measured where it is asked for first.

    Raises:
        SpecError: FATHOM_PRODUCTS is no choice, or asks for oneDNN where PyTorch has none.
    """
    choice = forced_choice()
    if choice is None:
        return choice_of(str(torch.__version__), measured_gflops)
    if choice.library == "onednn" and not _onednn_works():
        problem = f"cannot be onednn, which torch {torch.__version__} cannot use here"
        raise SpecError(VARIABLE, problem, "set it to blas")
    return choice


def measured_gflops() -> dict[str, float]:
    """Time the three products of a linear layer's training step; billions of float32 operations a second by library.

    Half a second, in rounds that alternate, the fastest of which counts. No random number is drawn.
    """
    contestants: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"blas": torch.mm}
    if _onednn_works():
        contestants["onednn"] = _onednn
    factors = _factors()
    products = {name: [partial(run, *each) for each in factors] for name, run in contestants.items()}
    if has_native_bfloat16():
        products["bfloat16"] = [partial(torch.mm, left.bfloat16(), right.bfloat16()) for left, right in factors]
    fastest = {name: [math.inf] * len(factors) for name in products}
    end, rounds = time.perf_counter() + _MEASURED_SECONDS, 0
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        while rounds < _ROUNDS or time.perf_counter() < end:
            for name, runs in products.items():
                for index, run in enumerate(runs):
                    start = time.perf_counter()
                    run()
                    fastest[name][index] = min(fastest[name][index], time.perf_counter() - start)
            rounds += 1
    operations = 2.0 * len(factors) * _ROWS * _SIZE**2
    return {name: operations / sum(seconds) / 1e9 for name, seconds in fastest.items()}


def _factors() -> list[tuple[Tensor, Tensor]]:
    """What a linear layer multiplies: x w^T forward, and for the gradients g w and g^T x."""
    x_NY, weight_XY = _numbers(_ROWS, _SIZE), _numbers(_SIZE, _SIZE)
    return [(x_NY, weight_XY.t()), (x_NY, weight_XY), (x_NY.t(), x_NY)]


def _numbers(rows: int, columns: int) -> Tensor:
    return torch.arange(rows * columns, dtype=torch.float64).sin_().float().view(rows, columns)


def _onednn(left_NY: Tensor, right_YX: Tensor) -> Tensor:
    found_NX: Tensor = torch.ops.mkldnn._linear_pointwise(left_NY, right_YX.t(), None, "none", [], "")
    return found_NX


@lru_cache(maxsize=1)
def _onednn_works() -> bool:
    """Whether oneDNN is there, and right to rounding in every orientation."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    size = 2 * _LEAST_ROWS
    x_NY, weight_XY = _numbers(size, size + 1), _numbers(size + 2, size + 1)
    try:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            pairs = [(x_NY, weight_XY.t()), (x_NY.t(), x_NY), (weight_XY, x_NY.t().contiguous())]
            errors = [(_onednn(a, b) - a.double() @ b.double()).abs().max() for a, b in pairs]
            return bool(torch.stack(errors).max() < _LARGEST_ERROR)
    except (AttributeError, RuntimeError):
        return False
