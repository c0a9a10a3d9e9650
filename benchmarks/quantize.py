"""What quantizing weights costs a model: bits per byte of a text and bytes of memory, by format.

With the native library its formats are measured, with activations in 8 bits and in float32. FATHOM_NATIVE=0 measures
PyTorch's, where the text is read twice: in windows, where many rows meet each matrix, and token by token through the
cache, where the fused products run. All are compared with float32 on the same tokens.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import peers
from fathom.evals.bits_per_byte import BitsPerByte, bits_per_byte
from fathom.evals.perplexity import perplexity
from fathom.inference.language_model import LanguageModel
from fathom.kernels.native import library
from fathom.kernels.native.matrix import PackedExperts, PackedMatrix
from fathom.kernels.weight_formats import QuantFormat
from fathom.model import StaticCache
from fathom.model.quantize import quantize, set_activations
from fathom.model.quantized import quantized_weights, weight_bytes
from fathom.spec.engine import WeightFormat

HELD_OUT = Path("runs/quickstart/corpus/held_out")
QUICKSTART = "runs/quickstart/long-context"


@dataclass(frozen=True)
class WeightConfig:
    """How the weights are kept and the activations computed; ``stored``, as a GGUF file quantizes them."""

    dtype: str = "float32"
    format: QuantFormat | None = None
    group_size: int = 32
    head: WeightFormat = "int8"
    stored: bool = False


WEIGHT_CONFIGS = {
    "float32": WeightConfig(),
    "bfloat16": WeightConfig("bfloat16"),
    "as stored": WeightConfig(stored=True),
    "int8": WeightConfig(format="int8"),
    "int4, groups of 32": WeightConfig(format="int4"),
    "int4, groups of 32, head too": WeightConfig(format="int4", head="int4"),
    "int4, groups of 64": WeightConfig(format="int4", group_size=64),
    "int4, groups of 128": WeightConfig(format="int4", group_size=128),
}
NATIVE_CONFIGS = ("float32", "as stored", "int8", "int4, groups of 32")
"""What the native library packs; "as stored" only of GGUF files."""


def text(folder: Path, documents: int) -> str:
    """Join the first documents of every source."""
    parts = []
    for file in sorted(folder.glob("*.jsonl")):
        lines = file.read_text().splitlines()[:documents]
        parts += [json.loads(line)["text"] for line in lines]
    return "\n\n".join(parts)


def opened(model: str, form: WeightConfig) -> LanguageModel:
    """Open a model in a form."""
    found = LanguageModel.open(model, dtype=form.dtype, weights="auto" if form.stored else "plain", device="cpu")
    if form.format is not None:
        quantize(found.model, form.format, form.group_size, head=form.head)
    return found


def decoded(model: LanguageModel, tokens_T: Tensor, text_bytes: int) -> BitsPerByte:
    """Score a text token by token, each in a step of its own."""
    cache = StaticCache.allocate(
        model.spec, batch_size=1, max_length=len(tokens_T), device=torch.device("cpu"), dtype=model.model.dtype
    )
    nats = 0.0
    with torch.inference_mode():
        for token_1, target_1 in zip(tokens_T[:-1].split(1), tokens_T[1:].split(1), strict=True):
            hidden_1D = model.model(token_1[None], cache=cache).hidden_BTD[0]
            nats += float(F.cross_entropy(model.model.logits(hidden_1D), target_1))
    return BitsPerByte(nats=nats, tokens=len(tokens_T) - 1, text_bytes=text_bytes)


def losses(model: LanguageModel, ids: list[int], steps: int, context: int) -> dict[str, object]:
    """Score a text in windows, and its first ``steps`` tokens one by one."""
    few = ids[: min(steps, context) + 1]
    text_bytes, few_bytes = (len(model.tokenizer.decode(x[1:], continues=True).encode()) for x in (ids, few))
    windows = bits_per_byte(model.model, torch.tensor(ids), text_bytes=text_bytes, context=context, stride=context)
    found: dict[str, object] = {
        "bits_per_byte": windows.value,
        "perplexity": perplexity(windows),
        "tokens": windows.tokens,
    }
    if steps:
        single = decoded(model, torch.tensor(few), few_bytes)
        found |= {"bits_per_byte_token_by_token": single.value, "tokens_token_by_token": single.tokens}
    return found


def measure(
    name: str, form: WeightConfig, source: str, tokens: int, steps: int, context: int
) -> dict[str, object] | None:
    """Measure a model in one form, packed ones with activations in 8 bits and in float32; None if none is stored."""
    model = opened(name, form)
    if form.stored and model.weights == "plain":
        return None
    ids = model.tokenizer.encode(source)[: tokens + 1]
    settings = (ids, steps, min(context, model.spec.max_position_embeddings))
    found: dict[str, object] = {"weights": model.weights, "weight_bytes": weight_bytes(model.model)}
    found |= losses(model, *settings)
    if any(isinstance(each, PackedMatrix | PackedExperts) for each in quantized_weights(model.model)):
        set_activations(model.model, rounded=False)
        found["float32_activations"] = losses(model, *settings)
    return found


def main() -> None:
    native = library.available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="A name or directory; may be repeated.")
    parser.add_argument("--text", type=Path, default=HELD_OUT, help="A folder of .jsonl files.")
    parser.add_argument("--documents", type=int, default=8, help="Of each file.")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument(
        "--steps", type=int, default=0 if native else 512, help="Tokens read one by one; none by default if native."
    )
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--form", action="append", choices=WEIGHT_CONFIGS, help="Only these; all if left out.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    arguments = parser.parse_args()
    source = text(arguments.text, arguments.documents)
    if not source:
        parser.error(f"--text: {arguments.text} has no .jsonl file; train the quickstart, or name another folder")
    found: dict[str, dict[str, object]] = {}
    models = arguments.model or ["smollm2-135m", *([QUICKSTART] if Path(QUICKSTART).exists() else [])]
    for model in models:
        found[model] = {}
        for form in arguments.form or (NATIVE_CONFIGS if native else WEIGHT_CONFIGS):
            print(f"{model}: {form}", flush=True)
            settings = (arguments.tokens, arguments.steps, arguments.context)
            measured = measure(model, WEIGHT_CONFIGS[form], source, *settings)
            if measured is not None:
                found[model][form] = measured
    name = "quantize-native" if native else "quantize"
    peers.write(name, {"text": str(arguments.text), "models": found}, arguments.out)


if __name__ == "__main__":
    main()
