from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from fathom.checkpoint.gguf.blocks import BLOCK_FORMATS, FLOATS, TYPE_SIZES
from fathom.checkpoint.gguf.container import Container, type_sizes
from fathom.errors import CheckpointError
from tests.fuzz import gguf_files as files

ROOM = bytes(64)


def opened(tmp_path: Path, content: bytes) -> Container:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return Container.open(path)


@pytest.mark.parametrize("alignment", [None, 64])
def test_a_file_of_the_library_reads_as_the_library_reads_it(tmp_path: Path, alignment: int | None) -> None:
    path = files.write(tmp_path / "model.gguf", alignment=alignment)
    ours, theirs = Container.open(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert dict(ours.metadata) == fields
    assert {key: type(value) for key, value in ours.metadata.items()} == {k: type(v) for k, v in fields.items()}
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert (info.kind, info.offset, info.nbytes) == (tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes)
        wanted = gguf.dequantize(tensor.data, tensor.tensor_type)
        read = ours.read(tensor.name)
        assert np.array_equal(read.float().numpy(), wanted.reshape(info.shape))
    assert ours.read("half.weight").dtype == torch.float16
    assert ours.read("bf16.weight").dtype == torch.bfloat16


def test_version_2_reads_as_version_3(tmp_path: Path) -> None:
    content = bytearray(files.write(tmp_path / "model.gguf").read_bytes())
    third = opened(tmp_path, bytes(content))
    content[4] = 2
    second = opened(tmp_path, bytes(content))
    assert (second.metadata, second.tensors) == (third.metadata, third.tensors)


def test_a_tensor_larger_than_a_chunk_reads_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fathom.checkpoint.gguf.container._CHUNK_BYTES", 100)
    path = files.write(tmp_path / "model.gguf")
    kind, stored = files.tensors()["q4_1.weight"]
    assert np.array_equal(Container.open(path).read("q4_1.weight").numpy(), gguf.dequantize(stored, kind))


def test_a_type_of_ggml_that_is_not_read_is_listed_and_refused_when_read(tmp_path: Path) -> None:
    entries = (files.entry("w", (256,), kind=gguf.GGMLQuantizationType.IQ2_XXS),)
    container = opened(tmp_path, files.build(entries=entries, data=bytes(66)))
    assert container.tensors["w"].kind == "IQ2_XXS"
    with pytest.raises(CheckpointError, match="w is of type IQ2_XXS, which Fathom does not read; use one of F32"):
        container.read("w")


def test_a_file_that_shrank_is_noticed(tmp_path: Path) -> None:
    path = files.write(tmp_path / "model.gguf")
    container = Container.open(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(CheckpointError, match=r"q5_1.weight ends early"):
        container.read("q5_1.weight")


HUGE = 2**62
FAULTS = {
    "no file of this kind": (files.build(magic=b"GGML"), "magic is not GGUF"),
    "empty": (b"", "is empty; the file is damaged or not GGUF"),
    "three bytes": (b"GGU", "magic ends at byte 4 of a file of 3"),
    "version 1": (files.build(version=1), "version 1 is not supported; use a file of version 2 or 3"),
    "version 4": (files.build(version=4), "version 4 is not supported"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is big-endian; convert the file to little-endian"),
    "too many fields": (
        files.build(field_count=HUGE, data=ROOM),
        "metadata_kv_count is 4611686018427387904, more than",
    ),
    "too many tensors": (files.build(tensor_count=HUGE, data=ROOM), "tensor_count is 4611686018427387904, more than"),
    "more fields than there are": (files.build((files.number("a", 4, "I", 1),), field_count=2, data=ROOM), "empty"),
    "key too long": (files.build((struct.pack("<Q", 2**40),), data=ROOM), "key length is 1099511627776, more than"),
    "key of too many bytes": (files.build((files.number("k" * 65536, 4, "I", 1),)), "has 65536 bytes, more than 65535"),
    "key not UTF-8": (files.build((files.number(b"\xff\xfe", 4, "I", 1),)), r"metadata\[0\].key is not UTF-8"),
    "key of two lines": (files.build((files.number("a\nb", 4, "I", 1),)), r"metadata\[0\].key is 'a\\nb', not a name"),
    "key twice": (files.build((files.number("a", 4, "I", 1),) * 2), r"metadata\[1\].key 'a' stands there twice"),
    "unknown value type": (files.build((files.number("a", 13, "I", 1),)), "a has the unknown value type 13"),
    "boolean": (files.build((files.number("a", 7, "B", 2),)), "a holds a boolean that is neither 0 nor 1"),
    "text too long": (files.build((files.number("a", 8, "Q", HUGE),), data=ROOM), "a length is 4611686018427387904"),
    "list too long": (
        files.build((files.number("a", 9, "IQ", 4, HUGE),), data=ROOM),
        "a length is 4611686018427387904",
    ),
    "list of texts too long": (
        files.build((files.number("a", 9, "IQ", 8, HUGE),), data=ROOM),
        "a length is 46116860184",
    ),
    "text in a list too long": (
        files.build((files.number("a", 9, "IQQ", 8, 1, HUGE),), data=ROOM),
        r"a\[0\] ends at byte 46116860184",
    ),
    "text in a list not UTF-8": (
        files.build((files.number("a", 9, "IQ", 8, 2) + files.text("x") + files.text(b"\xc3"),)),
        r"a\[1\] is not UTF-8",
    ),
    "list of lists": (files.build((files.number("a", 9, "IQIQ", 9, 1, 4, 0),)), "a is an array of arrays"),
    "list of nothing known": (
        files.build((files.number("a", 9, "IQ", 77, 0),)),
        "elements of the unknown value type 77",
    ),
    "no name": (files.build((), (files.entry(""),), data=ROOM), r"tensors\[0\].name is empty"),
    "name too long": (files.build((), (files.entry("n" * 65),), data=ROOM), "has 65 bytes, more than 64"),
    "name not UTF-8": (files.build((), (files.entry(b"\x80"),), data=ROOM), r"tensors\[0\].name is not UTF-8"),
    "name twice": (files.build((), (files.entry(), files.entry(offset=32)), data=ROOM), "'w' stands there twice"),
    "no dimensions": (files.build((), (files.entry(dimensions=()),), data=ROOM), "w: n_dimensions is 0, not 1 to 4"),
    "five dimensions": (files.build((), (files.entry(dimensions=(1,) * 5),), data=ROOM), "w: n_dimensions is 5"),
    "a zero": (
        files.build((), (files.entry(dimensions=(4, 0)),), data=ROOM),
        r"w: dimensions are \(4, 0\), with a zero",
    ),
    "product overflows": (
        files.build((), (files.entry(dimensions=(HUGE, 4)),), data=ROOM),
        "w: ends at byte 7378697629",
    ),
    "unknown type": (files.build((), (files.entry(kind=4),), data=ROOM), "w: type 4 is not known"),
    "half a block": (files.build((), (files.entry(dimensions=(33,), kind=8),), data=ROOM), "rows of 33 are not whole"),
    "misaligned": (files.build((), (files.entry(offset=16),), data=ROOM), "w: offset 16 is no multiple of 32"),
    "offset beyond": (files.build((), (files.entry(offset=2**63),), data=ROOM), "w: ends at byte 92233720368547"),
    "cut short": (
        files.build((), (files.entry(dimensions=(16,)),), data=ROOM[:63]),
        "w: ends at byte 128 of a file of 127",
    ),
    "overlap": (
        files.build((), (files.entry("a", (9,)), files.entry("b", offset=32)), data=ROOM),
        "b: overlaps a; the file is damaged",
    ),
    "alignment": (
        files.build((files.number(files.ALIGNMENT, 4, "I", 48),)),
        "alignment is 48; it must be a power of two",
    ),
    "alignment 0": (
        files.build((files.number(files.ALIGNMENT, 4, "I", 0),)),
        "alignment is 0; it must be a power of two",
    ),
    "alignment of 64 bits": (files.build((files.number(files.ALIGNMENT, 10, "Q", 32),)), "alignment is 32; it must be"),
    "alignment a text": (
        files.build((files.text(files.ALIGNMENT) + struct.pack("<I", 8) + files.text("x"),)),
        "is x; it",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_refused_in_one_line_without_a_large_allocation(tmp_path: Path, name: str) -> None:
    content, message = FAULTS[name]
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=message) as caught:
        opened(tmp_path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).startswith(f"{tmp_path / 'model.gguf'}: ")
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)
    assert peak < 2**21


def test_the_file_that_every_fault_is_made_of_opens(tmp_path: Path) -> None:
    container = opened(tmp_path, files.build((files.number("a", 4, "I", 7),), (files.entry(),), data=ROOM))
    assert container.metadata == {"a": 7}
    assert container.tensors["w"].shape == (4,)
    assert container.read("w").tolist() == [0.0] * 4


def test_every_truncation_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = files.write(tmp_path / "whole.gguf").read_bytes()
    last = max(info.offset + info.nbytes for info in Container.open(tmp_path / "whole.gguf").tensors.values())
    for length in range(0, last, 7):
        with pytest.raises(CheckpointError):
            opened(tmp_path, whole[:length])


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read, there is no such file"):
        Container.open(tmp_path / "absent.gguf")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Container.open(tmp_path)


def test_the_types_read_are_those_of_ggml() -> None:
    theirs = type_sizes()
    assert {number: theirs[number] for number in TYPE_SIZES} == TYPE_SIZES
    assert {name for name, *_ in TYPE_SIZES.values()} == {*FLOATS, *BLOCK_FORMATS}
