from __future__ import annotations

import pytest

from fathom.cli.served_models import default_name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("models/tiny.gguf", "tiny"),
        ("models/tiny.GGUF", "tiny"),
        ("models/tiny-00002-of-00003.gguf", "tiny"),
        ("models/tiny/", "tiny"),
        ("owner/tiny", "tiny"),
        ("owner/tiny:Q4_0", "tiny:Q4_0"),
        ("owner/tiny/tiny-Q4_0.gguf", "tiny-Q4_0"),
    ],
)
def test_a_model_without_a_name_is_called_as_its_path_ends(path: str, name: str) -> None:
    assert default_name(path) == name
