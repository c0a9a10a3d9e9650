import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.errors import SpecError
from fathom.kernels.native import matrix
from fathom.kernels.native.matrix import GGML_TYPES, pack, pack_experts, pack_gguf, pack_gguf_experts

pytestmark = pytest.mark.usefixtures("native")
SHAPES = ((1, 32), (15, 64), (16, 96), (17, 160), (100, 32))
QUANTIZED = ("Q8_0", "Q4_0", "Q4_1")


def ggml_quantized(weight_XY: Tensor, kind: str) -> Tensor:
    raw = gguf.quants.quantize(weight_XY.numpy(), gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(np.ascontiguousarray(raw)).view(torch.uint8)


def ggml_dequantized(blocks: Tensor, kind: str, columns: int) -> Tensor:
    wide = gguf.quants.dequantize(blocks.numpy().reshape(-1), gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(np.ascontiguousarray(wide)).view(-1, columns)


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_gguf_blocks_unpack_to_the_numbers_of_the_gguf_library_to_the_bit(kind: str, rows: int, columns: int):
    width = rows * columns // 32 * GGML_TYPES[kind].block_bytes
    blocks = torch.randint(0, 256, (width,), generator=torch.Generator().manual_seed(rows), dtype=torch.uint8)
    halves = blocks.view(-1, GGML_TYPES[kind].block_bytes)
    halves[:, 1] &= 0x7B  # steps are finite
    if kind == "Q4_1":
        halves[:, 3] &= 0xFB
    packed = pack_gguf(blocks, kind, rows, columns)
    wanted = ggml_dequantized(blocks, kind, columns)
    assert torch.equal(packed.unpack().view(torch.int32), wanted.view(torch.int32))
    assert torch.equal(packed.unpack(slice(rows // 2, rows)), wanted[rows // 2 :])
    assert torch.equal(packed.unpack(slice(1, 1)), wanted[:0])


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("scale", [1e-6, 0.02, 300.0])
def test_packing_rounds_as_the_gguf_librarys_quantizer(kind: str, scale: float):
    weight_XY = torch.randn(33, 96, generator=torch.Generator().manual_seed(1)) * scale
    weight_XY[3, 32:64] = 0.0
    weight_XY[4, 5] = scale * 40
    weight_XY[5] = scale
    packed = pack(weight_XY, GGML_TYPES[kind].format)
    wanted = pack_gguf(ggml_quantized(weight_XY, kind), kind, 33, 96)
    assert torch.equal(packed.data, wanted.data)


def test_packing_rounds_as_the_gguf_library_at_ties_and_extremes():
    ties = torch.arange(-16, 16).float() + 0.5
    rows_X = [ties, ties * 8, -ties.abs(), torch.full((32,), 1e-30), torch.full((32,), -3e4), ties * 1e-9]
    weight_XY = torch.stack(rows_X)
    for kind in QUANTIZED:
        packed = pack(weight_XY, GGML_TYPES[kind].format)
        wanted = pack_gguf(ggml_quantized(weight_XY, kind), kind, len(weight_XY), 32)
        assert torch.equal(packed.data, wanted.data), kind


@pytest.mark.parametrize(("rows", "columns"), [*SHAPES, (3, 1), (16, 7), (17, 33)])
def test_floats_unpack_to_what_was_packed(rows: int, columns: int):
    weight_XY = torch.randn(rows, columns, generator=torch.Generator().manual_seed(2))
    weight_XY[0, 0], weight_XY[-1, -1] = float("inf"), float("nan")
    rounded_XY = weight_XY.bfloat16()
    for source in (weight_XY, weight_XY.double(), weight_XY.t().contiguous().t()):
        assert torch.equal(pack(source, "float32").unpack().view(torch.int32), weight_XY.view(torch.int32))
        assert_equal_numbers(pack(source, "bfloat16").unpack(), rounded_XY.float())
    assert_equal_numbers(pack(rounded_XY, "float32").unpack(), rounded_XY.float())
    assert_equal_numbers(pack(rounded_XY, "bfloat16").unpack(), rounded_XY.float())
    raw = rounded_XY.contiguous().view(torch.uint8)
    assert_equal_numbers(pack_gguf(raw, "BF16", rows, columns).unpack(), rounded_XY.float())
    assert torch.equal(
        pack_gguf(weight_XY.view(torch.uint8), "F32", rows, columns).data, pack(weight_XY, "float32").data
    )


def assert_equal_numbers(given: Tensor, wanted: Tensor) -> None:
    assert torch.equal(given.isnan(), wanted.isnan())
    assert torch.equal(given.nan_to_num(), wanted.nan_to_num())


@pytest.mark.parametrize("format", matrix.PACKED_FORMATS)
def test_every_expert_is_a_matrix_of_its_own_and_aligned(format: matrix.PackedFormat):
    weight_EXY = torch.randn(3, 17, 32, generator=torch.Generator().manual_seed(3))
    experts = pack_experts(weight_EXY, format)
    assert len(experts) == 3
    assert experts.nbytes == experts.data.nbytes
    for packed, weight_XY in zip(experts, weight_EXY, strict=True):
        alone = pack(weight_XY, format)
        assert packed.data.data_ptr() % 64 == 0
        assert torch.equal(packed.data, alone.data)
        assert torch.equal(packed.unpack(), alone.unpack())


def test_stacked_blocks_are_the_experts_one_after_another():
    weight_EXY = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(4))
    blocks = ggml_quantized(weight_EXY.flatten(0, 1), "Q4_1")
    assert torch.equal(pack_gguf_experts(blocks, "Q4_1", 3, 5, 64).data, pack_experts(weight_EXY, "q4m").data)


def test_bytes_per_weight_are_those_of_the_blocks():
    for format, bytes_of_group in (("float32", 128), ("bfloat16", 64), ("q8", 34), ("q4", 18), ("q4m", 20)):
        assert pack(torch.ones(32, 64), format).nbytes == 32 * 2 * bytes_of_group


@pytest.mark.parametrize(
    ("weight_XY", "format", "message"),
    [
        (torch.ones(2, 33), "q8", "rows of 33 columns are not whole groups of 32; pack it in float32 or bfloat16"),
        (torch.ones(2, 32), "q5", "'q5' is not a packed format; use one of float32, bfloat16, q8, q4, q4m"),
        (torch.ones(0, 32), "q4", "weights of 0 rows and 32 columns cannot be packed"),
        (torch.ones(2, 3, 32), "q4", "has 3 dimensions on cpu, not 2 on the CPU"),
        (torch.tensor([[1.0] * 32, [float("nan")] * 32]), "q4", "row 1 has numbers that are not finite or too large"),
        (torch.full((1, 32), 1e30), "q8", "row 0 has numbers that are not finite or too large"),
    ],
)
def test_what_cannot_be_packed_is_refused(weight_XY: Tensor, format: matrix.PackedFormat, message: str):
    with pytest.raises(SpecError) as error:
        pack(weight_XY, format)
    assert message in str(error.value)


def test_blocks_of_another_size_or_type_are_refused():
    with pytest.raises(SpecError, match=r"17 elements of torch\.uint8 are not the 18 bytes of 32 weights in Q4_0"):
        pack_gguf(torch.zeros(17, dtype=torch.uint8), "Q4_0", 1, 32)
    with pytest.raises(SpecError, match=r"Q4_K is not packed as it is; use one of F32, BF16, Q8_0, Q4_0, Q4_1"):
        pack_gguf(torch.zeros(144, dtype=torch.uint8), "Q4_K", 1, 256)
