"""The tables of kernels that csrc/kernels.h declares, called one entry at a time."""

import ctypes
import re

from torch import Tensor

from fathom.kernels.native import build, library


class Kernels:
    """One instruction set's kernels: ``kernels.softmax(x, 5)`` with tensors, numbers and structs."""

    def __init__(self, isa: str) -> None:
        names = re.findall(r"^ {4}\w+ \(\*(\w+)\)\(", (build.SOURCES / "kernels.h").read_text(), re.MULTILINE)
        self._entries = dict(
            zip(names, (ctypes.c_void_p * len(names)).in_dll(library.library(), f"fathom_{isa}"), strict=True)
        )

    def __getattr__(self, name: str):
        return lambda *arguments: self._call(name, ctypes.c_int, arguments)

    def _call(self, name, result, arguments):
        held = [_argument(argument) for argument in arguments]
        return ctypes.CFUNCTYPE(result, *(type(argument) for argument in held))(self._entries[name])(*held)


def _argument(value):
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, Tensor):
        assert value.is_contiguous()
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_float(value)
    if isinstance(value, int):
        return ctypes.c_int(value)
    return ctypes.c_void_p(ctypes.addressof(value))
