"""Products with packed weights beside PyTorch's own, for every instruction set of this processor.

Up to 16 rows of activations read weights from memory: matrices that fill 384 MiB in turn, and the read bandwidth of the
same rounds is beside them. Contestants alternate; figures are medians: bytes of packed weights a second, and operations
a second, two a multiply-add. PyTorch multiplies in float32, and in bfloat16 with its fused int8 and int4 products.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import peers, timing
from fathom.kernels.native import library
from fathom.kernels.native.matrix import PACKED_FORMATS, PackedFormat, PackedMatrix, packed_bytes
from fathom.kernels.quantized_products import fused_matmul
from fathom.kernels.weight_formats import QuantFormat, quantize_weight

MEMORY = 384 << 20
FEW_ROWS = 16
BYTE = 0x2C  # repeated it is a small positive number in every format


@dataclass(frozen=True)
class Case:
    """What is multiplied: activations (N, Y) and matrices (X, Y) that lie in one memory."""

    memory: Tensor
    rows: int
    x_NY: Tensor

    def matrices(self, nbytes: int) -> list[Tensor]:
        """Return bytes of one matrix, or of as many as fill the memory where rows are few."""
        stride = -(-nbytes // 64) * 64
        count = MEMORY // stride if len(self.x_NY) <= FEW_ROWS else 1
        return [self.memory[i * stride : i * stride + nbytes] for i in range(count)]


@dataclass(frozen=True)
class Contestant:
    """``run`` multiplies by ``count`` matrices of ``nbytes`` each."""

    run: Callable[[], None]
    count: int
    nbytes: int

    @classmethod
    def of(cls, product: Callable[[int], object], matrices: list[Tensor]) -> Contestant:
        """Multiply by each of the matrices; ``product`` takes its number."""

        def run() -> None:
            for index in range(len(matrices)):
                product(index)

        return cls(run, len(matrices), matrices[0].nbytes)


def packed(
    case: Case, format: PackedFormat, isa: str, pool: library.ThreadPool, *, quantize: bool = True
) -> Contestant:
    """The native library's product."""
    columns = case.x_NY.shape[1]
    matrices = case.matrices(packed_bytes(format, case.rows, columns))
    weights = [PackedMatrix(format, case.rows, columns, data) for data in matrices]

    def product(index: int) -> None:
        library.use_isa(isa)
        weights[index].product(case.x_NY, quantize=quantize, pool=pool)

    return Contestant.of(product, matrices)


def plain(case: Case, dtype: torch.dtype) -> Contestant:
    """PyTorch's product of plain weights."""
    rows = case.x_NY.to(dtype)
    matrices = case.matrices(case.rows * rows.shape[1] * dtype.itemsize)
    weights = [data.view(dtype).view(case.rows, -1) for data in matrices]
    return Contestant.of(lambda index: torch.mm(rows, weights[index].t()), matrices)


def fused(case: Case, format: QuantFormat) -> Contestant:
    """PyTorch's fused product of quantized weights; their scales are not among the bytes counted."""
    rows = case.x_NY.bfloat16()
    like = quantize_weight(torch.randn(case.rows, rows.shape[1]), format)
    matrices = case.matrices(like.values.nbytes)
    values = [data.view(like.values.dtype).view(like.values.shape) for data in matrices]
    weights = [like.map(lambda x, v=v: v if x is like.values else x) for v in values]
    return Contestant.of(lambda index: fused_matmul(rows, weights[index]), matrices)


def contestants(case: Case, isas: list[str], pool: library.ThreadPool) -> dict[str, Contestant]:
    """Return all products of a case by name."""
    found = {f"torch {dtype}".replace("torch.", ""): plain(case, dtype) for dtype in (torch.float32, torch.bfloat16)}
    found |= {"torch int8": fused(case, "int8"), "torch int4": fused(case, "int4")}
    for isa in isas:
        found |= {f"{isa} {format}": packed(case, format, isa, pool) for format in PACKED_FORMATS}
    for format in ("q8", "q4"):
        found[f"{isas[-1]} {format}, float activations"] = packed(case, format, isas[-1], pool, quantize=False)
    return found


def measure(case: Case, isas: list[str], threads: int, rounds: int) -> dict[str, object]:
    """Return the figures of all contestants with a number of threads."""
    torch.set_num_threads(threads)
    named = contestants(case, isas, library.ThreadPool(threads))
    numbers = case.memory.view(torch.int64)
    runs = {"read": lambda: numbers.sum() and None} | {name: one.run for name, one in named.items()}
    seconds = {name: statistics.median(times) for name, times in timing.interleave(runs, rounds=rounds).items()}
    operations = 2 * case.x_NY.numel() * case.rows
    products = {
        name: {
            "weights GB/s": round(one.nbytes * one.count / seconds[name] / 1e9, 2),
            "GOP/s": round(operations * one.count / seconds[name] / 1e9, 1),
        }
        for name, one in named.items()
    }
    return {
        "threads": threads,
        "rows": len(case.x_NY),
        "read GB/s": round(MEMORY / seconds["read"] / 1e9, 1),
    } | products


def main() -> None:
    """Measure what the arguments say and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4096, help="of weights")
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 16, 256], help="rows of activations")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--isas", nargs="+", default=[isa for isa in library.usable_isas() if isa != "scalar"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    given = parser.parse_args()
    memory = torch.full((MEMORY,), BYTE, dtype=torch.uint8)
    before, results = library.current_isa(), []
    for count in given.counts:
        case = Case(memory, given.rows, torch.randn(count, given.columns))
        results += [measure(case, given.isas, threads, given.rounds) for threads in given.threads]
    library.use_isa(before)
    peers.write("native-products", {"weights": [given.rows, given.columns], "results": results}, given.out)


if __name__ == "__main__":
    main()
