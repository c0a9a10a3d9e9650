from __future__ import annotations

from pathlib import Path

import pytest

from fathom.checkpoint.gguf.part_names import PartName, group_parts, parse_part_name, part_path, present_parts


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DeepSeek-V2-Q4_0-00003-of-00009.gguf", PartName("DeepSeek-V2-Q4_0", 3, 9, ".gguf")),
        ("a-00001-of-00001.GGUF", PartName("a", 1, 1, ".GGUF")),
        ("a.gguf", None),
        ("a-00003-of-00002.gguf", None),
        ("a-00000-of-00002.gguf", None),
        ("a-1-of-2.gguf", None),
        ("-00001-of-00002.gguf", None),
        ("a-00001-of-00002.gguf.part", None),
    ],
)
def test_a_part_is_known_by_its_name(name: str, expected: PartName | None) -> None:
    assert parse_part_name(name) == expected
    if expected is not None:
        assert expected.sibling(expected.number) == name


def test_parts_lie_beside_the_whole_models_path() -> None:
    assert part_path(Path("a/tiny.gguf"), 2, 12) == Path("a/tiny-00002-of-00012.gguf")
    assert part_path(Path("a/tiny.GGUF"), 1, 2) == Path("a/tiny-00001-of-00002.GGUF")
    assert part_path(Path("a/v1.5"), 1, 2) == Path("a/v1.5-00001-of-00002.gguf")


def test_parts_of_one_model_are_one_group() -> None:
    names = ["b.gguf", "a-00002-of-00002.gguf", "A-00001-of-00002.gguf", "a-00001-of-00003.gguf"]
    assert group_parts(names) == {
        "A-00001-of-00002.gguf": ["A-00001-of-00002.gguf", "a-00002-of-00002.gguf"],
        "a-00001-of-00003.gguf": ["a-00001-of-00003.gguf"],
        "b.gguf": ["b.gguf"],
    }


def test_present_parts_are_those_beside_a_part(tmp_path: Path) -> None:
    for name in ("a-00001-of-00003.gguf", "a-00003-of-00003.gguf", "a-00001-of-00002.gguf", "b.gguf"):
        (tmp_path / name).touch()
    found = present_parts(tmp_path / "a-00003-of-00003.gguf")
    assert [path.name for path in found] == ["a-00001-of-00003.gguf", "a-00003-of-00003.gguf"]
    assert present_parts(tmp_path / "b.gguf") == [tmp_path / "b.gguf"]
