from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from fathom.checkpoint.gguf.blocks import BLOCK_FORMATS, FLOATS, dequantize, quantize
from fathom.errors import CheckpointError

SCALES = {
    "Q8_0": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
"""Where the float16 scales stand in a block, so that random bytes can be given finite ones."""


def random_blocks(kind: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    raw = rng.integers(0, 256, (count, BLOCK_FORMATS[kind].nbytes), dtype=np.uint8)
    for place in SCALES[kind]:
        raw[:, place : place + 2] = rng.standard_normal((count, 1)).astype(np.float16).view(np.uint8)
    return raw


@pytest.mark.parametrize("kind", BLOCK_FORMATS)
def test_numbers_of_random_blocks_equal_the_librarys_to_the_bit(kind: str) -> None:
    raw = random_blocks(kind, 5000)  # several chunks, the last one not full
    wanted = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    got = dequantize(torch.from_numpy(raw), kind, (50, 100 * BLOCK_FORMATS[kind].elements))
    assert got.dtype == torch.float32
    assert np.array_equal(got.numpy().view(np.uint32).ravel(), wanted.view(np.uint32).ravel())


@pytest.mark.parametrize("kind", BLOCK_FORMATS)
def test_blocks_are_as_large_as_the_library_says(kind: str) -> None:
    assert (BLOCK_FORMATS[kind].elements, BLOCK_FORMATS[kind].nbytes) == gguf.GGML_QUANT_SIZES[
        gguf.GGMLQuantizationType[kind]
    ]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_quantizing_equals_the_librarys_bytes(kind: str) -> None:
    numbers = np.random.default_rng(3).standard_normal((700, 416), dtype=np.float32)
    numbers[0] = 0
    numbers[1] = np.round(numbers[1] * 4) / 4  # many halves and ties
    numbers[2, :32], numbers[2, 32:64] = [1, -1] * 16, [-1, 1] * 16
    numbers[3] *= 1e-9  # scales that float16 cannot hold
    wanted = gguf.quantize(numbers, gguf.GGMLQuantizationType[kind])
    got = quantize(torch.from_numpy(numbers), kind)  # type: ignore[arg-type]
    assert got.shape == wanted.shape
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_quantizing_bfloat16_equals_quantizing_its_float32(kind: str) -> None:
    numbers = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert np.array_equal(quantize(numbers, kind), quantize(numbers.float(), kind))  # type: ignore[arg-type]


def test_rounding_of_q8_0_takes_halves_away_from_zero() -> None:
    row = torch.zeros(1, 32)
    row[0, :6] = torch.tensor([127.0, 0.5, -0.5, 1.5, 0.49999997, -2.5])
    assert quantize(row, "Q8_0")[0, 2:8].view(np.int8).tolist() == [127, 1, -1, 2, 0, -3]


@pytest.mark.parametrize("kind", FLOATS)
def test_plain_kinds_are_kept_and_widened(kind: str) -> None:
    numbers = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    raw = quantize(numbers, kind)  # type: ignore[arg-type]
    assert raw.shape == (3, 5 * FLOATS[kind].itemsize)
    assert torch.equal(dequantize(raw.tobytes(), kind, (3, 5)), numbers.to(FLOATS[kind]).float())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_numbers_a_scale_cannot_hold_are_refused(kind: str, value: float) -> None:
    row = torch.ones(1, 32)
    row[0, 7] = value
    with pytest.raises(CheckpointError, match="too large or not finite; store it as F32"):
        quantize(row, kind)  # type: ignore[arg-type]


def test_wrong_sizes_and_unknown_kinds_are_refused() -> None:
    with pytest.raises(CheckpointError, match="rows of 33 are not whole blocks of 32; store them as F16"):
        quantize(torch.zeros(2, 33), "Q8_0")
    with pytest.raises(CheckpointError, match="34 bytes are not a tensor"):
        dequantize(bytes(34), "Q8_0", (2, 32))
    with pytest.raises(CheckpointError, match="IQ2_XXS: not a block format"):
        dequantize(bytes(66), "IQ2_XXS", (256,))
