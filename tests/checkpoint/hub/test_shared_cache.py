"""One cache with transformers: what either fetched, the other opens without fetching it again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fathom.checkpoint.hf import save_hf
from fathom.model import build
from tests.checkpoint.tiny_llama import SPEC
from tests.hub_server import serving

THEIRS = "import transformers; transformers.AutoModelForCausalLM.from_pretrained('owner/tiny')"
OURS = "from fathom.inference.loading import open_source; list(open_source('owner/tiny').stream())"

pytestmark = pytest.mark.slow


def test_what_either_fetched_the_other_opens(tmp_path: Path) -> None:
    published = save_hf(tmp_path / "published", SPEC, build(SPEC, seed=1).state_dict())
    files = {file.name: file.read_bytes() for file in published.iterdir()} | {"tokenizer.json": b"{}"}
    model = {"config.json", "model.safetensors"}
    with serving(files) as hub:

        def run(program: str, home: str, **more: str) -> set[str]:
            """Run a program with a cache of its own; returns what it fetched."""
            hub.sent.clear()
            environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / home)} | more
            subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True)
            return set(hub.sent)

        assert run(THEIRS, "theirs first") >= model
        assert run(OURS, "theirs first") == {"tokenizer.json"}
        hub.asked.clear()
        assert run(OURS, "theirs first") == set()
        assert hub.asked == []
        assert run(OURS, "ours first") >= model
        assert run(THEIRS, "ours first").isdisjoint(model)
        assert run(THEIRS, "ours first", HF_HUB_OFFLINE="1") == set()
        assert run(OURS, "ours first", HF_HUB_OFFLINE="1") == set()
