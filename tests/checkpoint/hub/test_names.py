from __future__ import annotations

import pytest

from fathom.checkpoint.hub.names import HubName, parse_hub_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", HubName("owner/name")),
        ("deepseek-ai/DeepSeek-V2-Lite", HubName("deepseek-ai/DeepSeek-V2-Lite")),
        ("owner/name-v1.5", HubName("owner/name-v1.5")),
        ("owner/name@main", HubName("owner/name", "main")),
        ("owner/name@refs/pr/4", HubName("owner/name", "refs/pr/4")),
        ("owner/name:Q4_K_M", HubName("owner/name", None, "Q4_K_M")),
        ("owner/name@v1:Q4_K_M", HubName("owner/name", "v1", "Q4_K_M")),
        ("owner/name/a.gguf", HubName("owner/name", None, "a.gguf")),
        ("owner/name/Q4/a-00001-of-00002.GGUF", HubName("owner/name", None, "Q4/a-00001-of-00002.GGUF")),
        ("owner/name:Q4/a.gguf", HubName("owner/name", None, "Q4/a.gguf")),
        ("owner/name@v1/a.gguf", HubName("owner/name", "v1", "a.gguf")),
        ("hf.co/owner/name:Q8_0", HubName("owner/name", None, "Q8_0")),
        ("https://huggingface.co/owner/name/", HubName("owner/name")),
        ("name", None),
        ("a/b/c", None),
        ("./a/b", None),
        ("../a/b", None),
        ("/a/b", None),
        ("runs/a.gguf", None),
        ("owner/name:", None),
        ("owner/name@", None),
        ("owner/name@../../x", None),
        ("owner/name: Q4", None),
        ("https://example.com/owner/name", None),
        ("C:\\models\\a", None),
    ],
)
def test_a_name_is_taken_apart(text: str, expected: HubName | None) -> None:
    assert parse_hub_name(text) == expected
    if expected is not None:
        assert parse_hub_name(str(expected)) == expected
