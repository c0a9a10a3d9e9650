"""What a plain load and generate must not import, to begin soon."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from fathom.inference.conversion import Conversion
from fathom.inference.loading import open_source

UNUSED = (
    *("PIL", "datasets", "gguf", "huggingface_hub", "jinja2", "llguidance", "pandas", "pyarrow", "sympy"),
    *("tomlkit", "torch._dynamo", "torch._inductor", "transformers", "urllib3", "yaml"),
    *("fathom.chat.grammar", "fathom.checkpoint.hub", "fathom.checkpoint.peft"),
    *("fathom.data.corpus", "fathom.data.conversations", "fathom.data.fetch", "fathom.inference.adapters"),
    *("fathom.pipeline", "fathom.posttrain", "fathom.serve", "fathom.spec.recipe", "fathom.spec.train", "fathom.train"),
)
PROGRAM = f"""
import json, sys
from fathom.inference.language_model import LanguageModel
from fathom.spec import SamplingParams
model = LanguageModel.open(sys.argv[1], device="cpu")
token, = model.stream(model.tokenizer.encode("the dog"), SamplingParams(max_tokens=1, temperature=0.0))
found = [name for name in sys.modules for unused in {UNUSED} if name == unused or name.startswith(unused + ".")]
print(json.dumps([model.tokenizer.decode([token]) != "", found]))
"""


def test_a_first_token_needs_no_data_training_grammars_or_compiler(
    publish: Callable[[str], Path], tmp_path: Path
) -> None:
    file = Conversion.prepare(open_source(publish("tiny-llama")), tmp_path / "tiny.gguf", "gguf").run()
    done = subprocess.run([sys.executable, "-c", PROGRAM, file], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, []]
