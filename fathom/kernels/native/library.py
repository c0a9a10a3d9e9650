"""The native library, loaded once: whether it is there, its functions, its instruction sets and its pools of threads.

Two variables of the environment are read here, at the first use: ``FATHOM_NATIVE=0`` keeps the library out (a path
names another one, such as that of ``make test-sanitizers``), and ``FATHOM_ISA`` (scalar, avx2, avxvnni, avx512, neon)
chooses an instruction set that is not the processor's best.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import sys
import weakref
from collections.abc import Mapping
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_int64, c_uint, c_void_p
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fathom.errors import FathomError
from fathom.kernels.native import build

ISAS = ("scalar", "avx2", "avxvnni", "avx512", "neon")  # fathom_isa of fathom_native.h


class Matrix(Structure):
    """``fathom_matrix``: packed weights."""

    _fields_ = (
        ("data", c_void_p),
        ("panel_bytes", c_int64),
        *((name, c_int32) for name in ("format", "rows", "columns")),
    )


# Results and arguments of the functions of fathom_native.h; a tensor is the address of its data.
_FUNCTIONS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "fathom_error": (c_char_p, ()),
    "fathom_sources": (c_char_p, ()),
    "fathom_has_isa": (c_int, (c_int,)),
    "fathom_use_isa": (c_int, (c_int,)),
    "fathom_current_isa": (c_int, ()),
    "fathom_features": (c_uint, ()),
    "fathom_pool_new": (c_void_p, (c_int,)),
    "fathom_pool_free": (None, (c_void_p,)),
    "fathom_packed_bytes": (c_int64, (c_int, c_int, c_int)),
    "fathom_pack": (c_int, (c_int, c_int, c_int, c_void_p, c_int, c_void_p)),
    "fathom_pack_gguf": (c_int, (c_int, c_int, c_int, c_void_p, c_void_p)),
    "fathom_unpack": (c_int, (POINTER(Matrix), c_int, c_int, c_void_p)),
    "fathom_write_rows": (None, (c_void_p, c_void_p, c_int, c_void_p, c_int64)),
    "fathom_read_rows": (None, (c_void_p, c_int64, c_int, c_int, c_int, c_void_p, c_int64)),
    "fathom_attend_bytes": (c_int64, (c_int, c_int, c_int)),
    "fathom_attend_all": (c_int, (c_void_p, c_void_p, c_int, c_void_p)),
    "fathom_tiles_bytes": (c_int64, (c_void_p, c_int)),
    "fathom_attend_tiles_all": (c_int, (c_void_p, c_void_p, c_void_p)),
    "fathom_train_attention_bytes": (c_int64, (c_void_p, c_int, c_int)),
    "fathom_train_attention_forward": (c_int, (c_void_p, c_void_p, c_void_p)),
    "fathom_train_attention_backward": (c_int, (c_void_p, c_void_p, c_void_p)),
    "fathom_product": (
        c_int,
        (c_void_p, POINTER(Matrix), c_void_p, c_int64, c_int, c_int, c_void_p, c_int64),
    ),
    "fathom_draw": (
        c_int,
        (c_void_p, c_void_p, c_int, c_int, c_void_p, c_int, c_int, c_void_p, c_void_p, c_void_p),
    ),
    # of training.h
    "fathom_silu_multiply_rows": (None, (c_void_p, c_void_p, c_int64, c_void_p, c_void_p)),
    "fathom_silu_multiply_gradients": (
        None,
        (c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    ),
    "fathom_rms_norm_rows": (None, (c_void_p, c_void_p, c_int64, c_void_p, c_float, c_void_p, c_void_p)),
    "fathom_rms_norm_gradients": (
        None,
        (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    ),
    "fathom_add_rows": (None, (c_void_p, c_void_p, c_void_p, c_void_p)),
    "fathom_draw_scratch": (c_int64, (c_int,)),
    "fathom_all_finite": (c_int, (c_void_p, c_int64)),
    # of step.h, whose structures belong to fathom.model.native
    "fathom_workspace_new": (c_void_p, ()),
    "fathom_workspace_free": (None, (c_void_p,)),
    "fathom_step": (c_int, (c_void_p, c_void_p, c_void_p, c_void_p)),
    "fathom_logits": (c_int, (c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_void_p)),
}


class Opened(NamedTuple):
    """The library, or None and the reason."""

    library: ctypes.CDLL | None
    reason: str


@cache
def _open() -> Opened:
    return open_library(os.environ)


def open_library(environment: Mapping[str, str]) -> Opened:
    """Load the library and choose its instruction set as an environment says; everything else here does it once.

    Raises:
        FathomError: FATHOM_ISA names what does not run here.
    """
    chosen = environment.get("FATHOM_NATIVE", "").strip()
    if chosen == "0":
        return Opened(None, "FATHOM_NATIVE=0 switches it off")
    path = Path(chosen) if chosen not in ("", "1") else build.LIBRARY
    if not path.exists():
        return Opened(None, f"there is no {path}" if path != build.LIBRARY else _why_not_built())
    try:
        library = ctypes.CDLL(str(path))
        sources = ctypes.CFUNCTYPE(c_char_p)(("fathom_sources", library))()
    except (OSError, AttributeError) as error:
        return Opened(None, f"it cannot be loaded ({error})")
    if build.SOURCES.is_dir() and sources.decode() != build.source_hash():
        return Opened(None, "it was built from other sources")
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    _choose_isa(library, environment.get("FATHOM_ISA", "").strip().lower())
    return Opened(library, "")


def _why_not_built() -> str:
    """Return what the installation wrote down."""
    try:
        return f"it was not built ({build.NOT_BUILT.read_text(encoding='utf-8').strip()})"
    except OSError:
        return "it was not built"


def facts() -> dict[str, object]:
    """Return what the doctor reports: the ``isa`` that runs and all ``isas`` that could; or the ``reason`` why none
    does and the ``command`` that builds the library, empty where it cannot help.
    """
    if available():
        return {"isa": current_isa(), "isas": usable_isas()}
    return {"reason": unavailable_reason(), "command": "" if os.environ.get("FATHOM_NATIVE") else _build_command()}


def _build_command() -> str:
    try:
        build.instruction_sets("")
    except build.BuildError:
        return ""
    return shlex.join([sys.executable, build.__file__])


def _choose_isa(library: ctypes.CDLL, name: str) -> None:
    if not name:
        return
    if name not in _usable(library):
        choices = ", ".join(_usable(library))
        raise FathomError(f"FATHOM_ISA: {name!r} is not among what runs here; choose one of {choices}")
    library.fathom_use_isa(ISAS.index(name))


def available() -> bool:
    """Return whether the library can be used."""
    return _open().library is not None


def unavailable_reason() -> str:
    """Return why the library cannot be used, as a clause without a full stop; empty where it can."""
    return _open().reason


def library() -> ctypes.CDLL:
    """Return the library; its functions are those of ``csrc/fathom_native.h``.

    Raises:
        FathomError: it cannot be used here, and why.
    """
    opened = _open()
    if opened.library is None:
        remedy = _build_command()
        raise FathomError(f"the native library cannot be used: {opened.reason}" + (f"; run {remedy}" if remedy else ""))
    return opened.library


def check(status: int) -> None:
    """Raise what the library says of its last failure on this thread, unless ``status`` is 0."""
    if status:
        raise FathomError(f"native library: {library().fathom_error().decode()}")


def current_isa() -> str:
    """Return the instruction set whose kernels run."""
    return ISAS[library().fathom_current_isa()]


def usable_isas() -> tuple[str, ...]:
    """Return the instruction sets whose kernels this build has and this processor runs, best last."""
    return _usable(library())


def _usable(library: ctypes.CDLL) -> tuple[str, ...]:
    return tuple(name for number, name in enumerate(ISAS) if library.fathom_has_isa(number))


def use_isa(name: str) -> None:
    """Choose the instruction set whose kernels run in the whole process; no other thread may be computing.

    Raises:
        FathomError: this build or this processor does not have it.
    """
    check(library().fathom_use_isa(ISAS.index(name) if name in ISAS else -1))


class ThreadPool:
    """A pool of ``threads`` threads of the library, the caller's among them; ``pointer`` is its ``fathom_pool *``.

    Raises:
        FathomError: the library cannot be used, or the system starts no more threads.
    """

    def __init__(self, threads: int) -> None:
        pool = library().fathom_pool_new(threads)
        check(0 if pool else -1)
        self.pointer: int = pool
        self.threads = threads
        self.close = weakref.finalize(self, library().fathom_pool_free, pool)
