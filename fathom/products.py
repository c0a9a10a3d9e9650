"""Which library computes matrix products of many rows on this processor: measured once, then kept in the cache.

PyTorch holds two libraries for float32 products, equally precise: the BLAS it was built with (MKL on x86), which it
takes by itself, and oneDNN. Either can be twice as fast as the other, depending on the processor. Which one was chosen
is kept, as it decides how sums are rounded: a run that is resumed computes what it would have computed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from filelock import FileLock, Timeout

from fathom.cache import cache_directory
from fathom.errors import FathomError, SpecError
from fathom.files import make_folder, read_text, sha256, write_json
from fathom.logs import warn_once
from fathom.system import processor_facts

ProductLibrary = Literal["blas", "onednn"]

VARIABLE = "FATHOM_PRODUCTS"
"""Chooses without a measurement: blas or onednn, with ",bfloat16" where ``precision = "auto"`` shall train in it."""
FOLDER = "products"
"""Where in the cache choices are kept."""
_LEAST_GAIN = 1.1
"""How much faster oneDNN must be to be chosen over PyTorch's own choice."""
_LEAST_BFLOAT16 = 0.8
"""The rate of bfloat16 products, over that of float32, from which training in bfloat16 is faster.

Below 1, as half as many bytes are moved between products (measured: at 0.85, a training step takes 0.7 of the time).
"""
_LOCK_SECONDS = 30.0
_IDENTITY = ("vendor_id", "cpu family", "model", "model name", "stepping", "cpu implementer", "cpu part", "flags")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductChoice:
    """The library of float32 products, and whether training in bfloat16 is faster; ``gflops`` are rates by name.

    Names are blas, onednn and, where the processor has units for them, bfloat16; none where nothing was measured.
    """

    library: ProductLibrary = "blas"
    bfloat16: bool = False
    gflops: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, gflops: Mapping[str, float]) -> ProductChoice:
        """Choose by the measured rates; oneDNN's is missing where it cannot be used."""
        blas, onednn = gflops["blas"], gflops.get("onednn", 0.0)
        narrow = gflops.get("bfloat16", 0.0) >= _LEAST_BFLOAT16 * max(blas, onednn)
        return cls(library="onednn" if onednn > _LEAST_GAIN * blas else "blas", bfloat16=narrow, gflops=gflops)


def forced_choice(environment: Mapping[str, str] | None = None) -> ProductChoice | None:
    """Return what FATHOM_PRODUCTS says, of this process unless an environment is given; None where it is not set.

    Raises:
        SpecError: it says something else than a library, and bfloat16.
    """
    value = (os.environ if environment is None else environment).get(VARIABLE, "").strip()
    if not value:
        return None
    library, *further = [word.strip() for word in value.split(",")]
    if library not in ("blas", "onednn") or further not in ([], ["bfloat16"]):
        remedy = "set it to blas, onednn, or either with ,bfloat16; or unset it"
        raise SpecError(VARIABLE, f"cannot be {value!r}", remedy)
    return ProductChoice(library=cast(ProductLibrary, library), bfloat16=bool(further))


def kept_choice(torch_version: str) -> ProductChoice | None:
    """Return the choice that was kept for this processor and version of PyTorch; None where there is none."""
    try:
        content = json.loads(read_text(_path(torch_version)))
        return ProductChoice.of({str(name): float(rate) for name, rate in content["gflops"].items()})
    except (FathomError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def choice_of(torch_version: str, measure: Callable[[], Mapping[str, float]]) -> ProductChoice:
    """Return the kept choice; else measure, and keep it. Processes that ask at once get the same one.

    PyTorch's own library is chosen, and nothing measured, where no choice can be kept: another process, or a resumed
    run, could choose otherwise.
    """
    path = _path(torch_version)
    try:
        make_folder(path.parent)
        with FileLock(path.with_suffix(".lock"), timeout=_LOCK_SECONDS):
            kept = kept_choice(torch_version)
            if kept is None:
                gflops = {name: round(rate, 1) for name, rate in measure().items()}
                write_json(path, {"processor": _name(), "torch": torch_version, "gflops": gflops})
                kept = ProductChoice.of(gflops)
            return kept
    except (OSError, FathomError, Timeout, NotImplementedError):
        warn_once(
            f"products: {path.parent} cannot be written, so the fastest library is not searched for; "
            f"set FATHOM_CACHE to a folder that can be, or {VARIABLE} to blas or onednn"
        )
        return ProductChoice()


def _path(torch_version: str) -> Path:
    facts = processor_facts()
    known = [torch_version, _name(), *(facts.get(name, "") for name in _IDENTITY)]
    return cache_directory() / FOLDER / f"{sha256(chr(10).join(known))[:16]}.json"


def _name() -> str:
    return processor_facts().get("model name", "")
