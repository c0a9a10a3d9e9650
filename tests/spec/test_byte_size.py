from __future__ import annotations

import pytest

from fathom.errors import SpecError
from fathom.spec.byte_size import parse_byte_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("4GiB", 4 * 2**30),
        ("4G", 4_000_000_000),
        ("500M", 500_000_000),
        ("2.5 gb", 2_500_000_000),
        (" 1KiB ", 1024),
        ("1.5KiB", 1536),
        ("1048576", 1048576),
        ("10B", 10),
        ("1TB", 10**12),
    ],
)
def test_sizes_read_as_people_write_them(text: str, nbytes: int) -> None:
    assert parse_byte_size("--size", text) == nbytes


@pytest.mark.parametrize("text", ["", "big", "4X", "-1G", "4iB", "1e9", "4 G B", "9" * 30])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SpecError, match=r"^--size: '.*' is no size in bytes; write it as 4GiB, 4G"):
        parse_byte_size("--size", text)


@pytest.mark.parametrize("text", ["0", "0.4", "0GiB"])
def test_less_than_a_byte_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is less than a byte; give a size above 0"):
        parse_byte_size("--size", text)
