"""What training does with many rows of float32 between its products, in the native library on PyTorch's own threads.

X rows.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, byref, c_int32, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from fathom.kernels.native.library import available, library

NORM_ROWS = 64  # FATHOM_NORM_ROWS of training.h
_LEAST_WEIGHT = 1e-12


class ManyRows(Structure):
    """``fathom_many_rows``: a shape, and the threads that share it."""

    _fields_ = (("parallel", c_void_p), ("threads", c_int32), ("width", c_int32), ("rows", c_int64))


def takes(*tensors: Tensor) -> bool:
    """Whether the library computes with these tensors: plain float32 on a CPU, rows without gaps, nothing traced."""
    return (
        all(type(x) in (Tensor, torch.nn.Parameter) and _is_dense_float32(x) for x in tensors)
        and not torch.compiler.is_compiling()
        and available()
        and (_openmp() is not None or torch.get_num_threads() == 1)
    )


def _is_dense_float32(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.stride(-1) == 1


@cache
def _openmp() -> int | None:
    """Return the address of GOMP_parallel in the OpenMP runtime of this process, None where it has none."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, c_void_p).value
    except (AttributeError, OSError, TypeError):
        return None


def _many(x_XF: Tensor, width: int) -> ManyRows:
    return ManyRows(_openmp(), torch.get_num_threads(), width, x_XF.shape[0])


def silu_multiply(gate_up_XF: Tensor, scale_X: Tensor | None, out_XF: Tensor) -> None:
    """Write scale silu(gate) up, (X, F); gate and up are the halves of (X, 2F)."""
    rows = _many(gate_up_XF, out_XF.shape[1])
    scales = None if scale_X is None else scale_X.data_ptr()
    library().fathom_silu_multiply_rows(
        byref(rows), gate_up_XF.data_ptr(), gate_up_XF.stride(0), scales, out_XF.data_ptr()
    )


def silu_multiply_gradients(
    gate_up_XF: Tensor, scale_X: Tensor | None, slope_XF: Tensor, grad_gate_up_XF: Tensor, grad_scale_X: Tensor | None
) -> None:
    """Write the gradients of ``silu_multiply``, and over ``slope``, the upstream gradient, its result."""
    rows = _many(gate_up_XF, slope_XF.shape[1])
    scales = None if scale_X is None else scale_X.data_ptr()
    source = (gate_up_XF.data_ptr(), gate_up_XF.stride(0), scales, slope_XF.data_ptr())
    grad_scales = None if grad_scale_X is None else grad_scale_X.data_ptr()
    target = (slope_XF.data_ptr(), grad_gate_up_XF.data_ptr(), grad_scales)
    library().fathom_silu_multiply_gradients(byref(rows), *source, *target)


def takes_norm(x: Tensor, weight: Tensor) -> bool:
    """Whether ``rms_norm`` computes this: its gradients divide its result by the weight, which must be no zero."""
    return takes(x, weight) and bool(weight.detach().abs().amin() > _LEAST_WEIGHT)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x / rms(x) * weight over the last dimension, and 1 / rms of each row (X,)."""
    x_XF, y = x.reshape(-1, x.shape[-1]), x.new_empty(x.shape)
    rows, inverse_X = _many(x_XF, x.shape[-1]), x.new_empty(x_XF.shape[0])
    source = (x_XF.data_ptr(), x_XF.stride(0), weight.data_ptr(), eps)
    library().fathom_rms_norm_rows(byref(rows), *source, y.data_ptr(), inverse_X.data_ptr())
    return y, inverse_X


def rms_norm_gradients(y: Tensor, weight: Tensor, inverse_X: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the weight, from what ``rms_norm`` returned."""
    grad, grad_x = grad.contiguous(), y.new_empty(y.shape)
    rows = _many(inverse_X, y.shape[-1])
    parts = y.new_empty((len(inverse_X) + NORM_ROWS - 1) // NORM_ROWS, y.shape[-1])
    source = (y.data_ptr(), weight.data_ptr(), inverse_X.data_ptr(), grad.data_ptr())
    library().fathom_rms_norm_gradients(byref(rows), *source, grad_x.data_ptr(), parts.data_ptr())
    return grad_x, parts.sum(0)


def add_rows(total_NF: Tensor, places_X: Tensor, rows_XF: Tensor) -> None:
    """Add each row to that of ``total`` whose number is its place, all below N, in order."""
    rows = _many(rows_XF, rows_XF.shape[1])
    library().fathom_add_rows(byref(rows), rows_XF.data_ptr(), places_X.data_ptr(), total_NF.data_ptr())
