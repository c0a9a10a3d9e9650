"""Split GGUF models: what others and we write in parts reads as the whole file does; faulty sets name the part."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fathom.checkpoint.gguf import GGUFFile, write_gguf
from fathom.checkpoint.gguf import parts as planning
from fathom.checkpoint.gguf.container import Container
from fathom.checkpoint.gguf.split import SPLIT_KEYS, SplitContainer
from fathom.checkpoint.weights import StateWeights
from fathom.errors import CheckpointError, SpecError
from fathom.files import PARTIAL
from fathom.model.build import parameter_shapes
from fathom.spec import ModelSpec
from fathom.tokenizer import Tokenizer
from tests.checkpoint.gguf.conftest import SPECS
from tests.fuzz import gguf_files as files

SpecOf = Callable[[str], ModelSpec]
MakeState = Callable[[ModelSpec], dict[str, Tensor]]


def fields(path: Path) -> dict[str, tuple[str, bytes]]:
    """Return the metadata that the gguf library reads, as its types and bytes; the keys of the split left out."""
    read = gguf.GGUFReader(path).fields.items()
    return {
        key: ("".join(kind.name for kind in field.types), b"".join(part.tobytes() for part in field.parts[2:]))
        for key, field in read
        if not key.startswith("GGUF.") and key not in SPLIT_KEYS
    }


def stored(path: Path) -> dict[str, tuple[str, bytes]]:
    """Return the tensors that the gguf library reads, as their types and bytes."""
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in gguf.GGUFReader(path).tensors}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Return a tiny model in one file."""
    return files.write_model(tmp_path / "whole.gguf")


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> list[Path]:
    """Return the same model in several parts, in a folder of their own."""
    (tmp_path / "parts").mkdir()
    return files.split(whole, tmp_path / "parts", 5)


def rewritten(path: Path, **numbers: int | None) -> None:
    """Give keys of the split other values, or remove them (None)."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_suffix(".new"), "llama")
    writer.kv_data[0].clear()
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or numbers.get(key.replace(".", "_"), 0) is None:
            continue
        value = numbers.get(key.replace(".", "_"), field.contents())
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, value, field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)


def test_a_model_split_by_the_library_reads_as_the_whole_file_from_any_part(whole: Path, parts: list[Path]) -> None:
    assert len(parts) == 5
    expected = GGUFFile.open(whole)
    for part in parts:
        opened = GGUFFile.open(part)
        assert opened.path == parts[0]
        assert opened.files == tuple(parts)
        assert opened.spec == expected.spec
        assert opened.container.metadata == expected.container.metadata
        assert {entry.name for entry in opened.stored} == {entry.name for entry in expected.stored}
    ours, theirs = opened.tokenizer(), expected.tokenizer()
    assert ours is not None
    assert theirs is not None
    assert ours.tokenizer_json == theirs.tokenizer_json
    for (name, tensor), (wanted_name, wanted) in zip(opened.stream(), expected.stream(), strict=True):
        assert name == wanted_name
        assert torch.equal(tensor, wanted)


def test_one_part_is_open_at_a_time(parts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = GGUFFile.open(parts[0])
    alive: list[int] = [0, 0]
    plain = Container.reading

    def counted(self: Container):  # type: ignore[no-untyped-def]
        manager = plain(self)

        class Counted:
            def __enter__(self):  # type: ignore[no-untyped-def]
                alive[0] += 1
                alive[1] = max(alive)
                return manager.__enter__()

            def __exit__(self, *given):  # type: ignore[no-untyped-def]
                alive[0] -= 1
                return manager.__exit__(*given)

        return Counted()

    monkeypatch.setattr(Container, "reading", counted)
    assert len(list(opened.stream())) == len(opened.rules)
    assert alive == [0, 1]


def test_names_in_another_case_links_and_a_link_of_another_name_work(parts: list[Path], tmp_path: Path) -> None:
    count = len(GGUFFile.open(parts[0]).stored)
    parts[1].rename(parts[1].with_suffix(".GGUF"))
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for index, part in enumerate(sorted(parts[0].parent.iterdir())):
        part.rename(blobs / f"{index}")
        part.symlink_to(blobs / f"{index}")
    assert len(GGUFFile.open(parts[3]).stored) == count
    shutil.rmtree(blobs)
    with pytest.raises(CheckpointError, match="cannot be read"):
        GGUFFile.open(parts[0])


def test_a_link_of_another_name_leads_to_the_parts(parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(parts[0])
    assert len(GGUFFile.open(tmp_path / "model.gguf").files) == 5


def test_missing_parts_are_named(parts: list[Path]) -> None:
    parts[2].unlink()
    with pytest.raises(CheckpointError, match=r"part 3 of 5, tiny-00003-of-00005\.gguf, is missing; download all"):
        GGUFFile.open(parts[0])
    parts[0].unlink()
    named = r"2 of 5 parts are missing, tiny-00001-of-00005\.gguf, tiny-00003-of-00005\.gguf; download"
    with pytest.raises(CheckpointError, match=named):
        GGUFFile.open(parts[1])


@pytest.mark.parametrize("content", [b"", b"GGUF", b"damaged and more"])
def test_a_damaged_part_is_named(parts: list[Path], content: bytes) -> None:
    parts[1].write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tiny-00002-of-00005\.gguf: .*; .*download it again") as caught:
        GGUFFile.open(parts[0])
    assert "\n" not in str(caught.value)


def test_a_part_under_the_name_of_another_is_found_out(parts: list[Path]) -> None:
    shutil.copy(parts[0], parts[1])
    with pytest.raises(CheckpointError, match=r"tiny-00002-of-00005\.gguf: split.no is 0, where part 2 has 1; it is"):
        GGUFFile.open(parts[0])


def test_parts_without_their_names_are_told_so(parts: list[Path]) -> None:
    moved = parts[0].rename(parts[0].with_name("model.gguf"))
    with pytest.raises(CheckpointError, match=r"is one of 5 parts \(split.count\), but is not named so; .*NAME-00001"):
        GGUFFile.open(moved)


def test_parts_of_several_models_are_refused(parts: list[Path]) -> None:
    rewritten(parts[1], split_count=6)
    with pytest.raises(
        CheckpointError, match=r"tiny-00002.*: split.count is 6, where the other parts say 5; the parts"
    ):
        GGUFFile.open(parts[0])
    rewritten(parts[1], split_count=5, split_tensors_count=99)
    with pytest.raises(CheckpointError, match=r"tiny-00002.*: split.tensors.count is 99, where tiny-00001-.* says 21"):
        GGUFFile.open(parts[0])


def test_a_tensor_in_two_parts_is_refused(parts: list[Path]) -> None:
    shutil.copy(parts[1], parts[2])
    rewritten(parts[2], split_no=2)
    with pytest.raises(CheckpointError, match=r"tiny-00003.*: blk\.\S+ stands in tiny-00002-of-00005\.gguf too; the"):
        GGUFFile.open(parts[0])


def test_a_wrong_number_of_tensors_is_refused(parts: list[Path]) -> None:
    for part in parts:
        rewritten(part, split_tensors_count=22)
    with pytest.raises(CheckpointError, match=r"split.tensors.count is 22, but the 5 parts hold 21; the parts are not"):
        GGUFFile.open(parts[0])


def test_a_first_part_without_metadata_is_refused(parts: list[Path]) -> None:
    rewritten(parts[0], general_architecture=None)
    with pytest.raises(CheckpointError, match=r"tiny-00001-.*: lacks general.architecture, which part 1 holds"):
        GGUFFile.open(parts[3])


def test_an_absurd_count_is_refused(parts: list[Path]) -> None:
    rewritten(parts[0], split_count=65535)
    with pytest.raises(CheckpointError, match="is one of 65535 parts"):
        GGUFFile.open(parts[0])
    rewritten(parts[0], split_no=None, split_count=5)
    with pytest.raises(CheckpointError, match=r"split.no is missing, where part 1 has 0"):
        GGUFFile.open(parts[0])


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=12)
def test_a_random_model_in_parts_of_random_sizes_equals_the_whole_file(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Tensors, types and metadata byte for byte, by the gguf library; and no part is larger than it may be."""
    spec = SPECS[data.draw(st.sampled_from(sorted(SPECS)))]
    kind = data.draw(st.sampled_from(["F32", "F16", "BF16", "Q8_0", "Q4_0"]))
    size = data.draw(st.integers(1_000, 250_000))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    state = {name: torch.randn(shape, generator=generator) for name, shape in parameter_shapes(spec).items()}
    weights, folder = StateWeights(spec, state), tmp_path_factory.mktemp("split")
    whole = write_gguf(folder / "whole.gguf", weights, kind=kind)  # type: ignore[arg-type]
    first = write_gguf(folder / "out" / "m.gguf", weights, kind=kind, max_part_bytes=size)  # type: ignore[arg-type]
    opened = SplitContainer.open(first)
    read = [stored(part) for part in opened.files]
    assert {name: tensor for part in read for name, tensor in part.items()} == stored(whole)
    assert [name for part in read for name in part] == list(stored(whole))
    assert fields(first) == fields(whole)
    for number, (part, tensors) in enumerate(zip(opened.files, read, strict=True)):
        assert part.stat().st_size <= size or len(tensors) == 1 or (number == 0 and not tensors)
        keys = {key: field.contents() for key, field in gguf.GGUFReader(part).fields.items() if key in SPLIT_KEYS}
        if len(opened.files) > 1:
            assert keys == dict(zip(SPLIT_KEYS, (number, len(opened.files), len(stored(whole))), strict=True))
            assert part.name == f"m-{number + 1:05d}-of-{len(opened.files):05d}.gguf"
        assert number == 0 or fields(part) == {}
    assert sorted((folder / "out").iterdir()) == list(opened.files)
    expected = GGUFFile.open(whole)
    for (name, tensor), (wanted_name, wanted) in zip(GGUFFile.open(first).stream(), expected.stream(), strict=True):
        assert name == wanted_name
        assert torch.equal(tensor, wanted)
    shutil.rmtree(folder)


def test_a_large_vocabulary_is_part_of_the_first_parts_size(
    spec_of: SpecOf, random_state: MakeState, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    spec = replace(spec_of("llama"), vocab_size=420)
    weights = StateWeights(spec, random_state(spec))
    first = write_gguf(tmp_path / "m.gguf", weights, kind="Q8_0", tokenizer=tokenizer, max_part_bytes=30_000)
    opened = GGUFFile.open(first)
    assert all(part.stat().st_size <= 30_000 for part in opened.files)
    assert opened.tokenizer() is not None


def test_an_existing_part_is_left_alone_and_nothing_is_written(
    spec_of: SpecOf, random_state: MakeState, tmp_path: Path
) -> None:
    spec = spec_of("llama")
    weights = StateWeights(spec, random_state(spec))
    first = write_gguf(tmp_path / "m.gguf", weights, kind="F32", max_part_bytes=50_000)
    parts = sorted(tmp_path.iterdir())
    first.unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-\d+\.gguf: already exists; choose a new name"):
        write_gguf(tmp_path / "m.gguf", weights, kind="F32", max_part_bytes=50_000)
    assert sorted(tmp_path.iterdir()) == parts[1:]


def test_parts_of_a_process_killed_between_two_renames_are_written_again(
    spec_of: SpecOf, random_state: MakeState, tmp_path: Path
) -> None:
    spec = spec_of("llama")
    weights = StateWeights(spec, random_state(spec))
    write_gguf(tmp_path / "m.gguf", weights, kind="F32", max_part_bytes=50_000)
    parts = sorted(tmp_path.iterdir())
    folder = tmp_path / f".{parts[0].name}.0123abcd{PARTIAL}"
    folder.mkdir()
    (folder / "names").write_text("\n".join(part.name for part in parts))
    parts[0].rename(folder / parts[0].name)
    assert write_gguf(tmp_path / "m.gguf", weights, kind="F32", max_part_bytes=50_000) == parts[0]
    assert sorted(tmp_path.iterdir()) == parts


def test_more_parts_than_the_format_counts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MAX_PARTS", 3)
    tensors = [planning.PlannedTensor(f"t{index}", (64,), "F32") for index in range(6)]
    with pytest.raises(SpecError, match="--split-max-size: 200 bytes would make 7 parts, more than the 3 of"):
        planning.plan_parts(tensors, {}, 200)
