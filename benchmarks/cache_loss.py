"""What quantized pages cost: a text's loss when all keys of earlier chunks are read back from pages of each format.

The text goes through the model in chunks, as a prompt does, every window in pages of its own. Against float32 pages:
the difference in nats per token with its standard error, the mean Kullback-Leibler divergence of the predictions, and
how often the likeliest token stays the same.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import peers
from fathom.cli.options import cache_directory
from fathom.inference.language_model import LanguageModel
from fathom.model import Decoder
from fathom.model.cache import PagedStep, PagePool, SequenceChunk
from fathom.model.cache.pages import PlainPages
from fathom.plan import cache_bits_per_number
from fathom.spec import CacheFormat
from fathom.tokenizer.bpe import Tokenizer

PAGE = 32


class BFloat16Pages(PlainPages):
    """Pages of a float32 model that keep what bfloat16 would."""

    def write(self, slots_N: Tensor, rows_NX: Tensor) -> None:
        super().write(slots_N, rows_NX.to(torch.bfloat16).float())


def quantized(model: Decoder, pages: int, cache_format: CacheFormat = "plain") -> PagePool:
    return PagePool.allocate(model.spec, pages=pages, page_size=PAGE, cache_format=cache_format)


def bfloat16_pool(model: Decoder, pages: int) -> PagePool:
    pool = quantized(model, 1)
    layers = [
        tuple(BFloat16Pages(pages, PAGE, g * k, device=pool.device, dtype=torch.float32) for g, k in pool.kv_shapes)
        for _ in pool.layers
    ]
    return PagePool(layers, pool.kv_shapes, page_size=PAGE, num_pages=pages, device=pool.device)


POOLS: dict[str, Callable[[Decoder, int], PagePool]] = {
    "float32": quantized,
    "bfloat16": bfloat16_pool,
    "int8": lambda model, pages: quantized(model, pages, "int8"),
    "int6": lambda model, pages: quantized(model, pages, "int6"),
}


def logprobs(model: Decoder, pool: PagePool, ids_T: Tensor, chunk: int) -> Tensor:
    """Log-probabilities after every token but the last, (T - 1, V)."""
    pages, found, last = tuple(range(pool.num_pages)), [], len(ids_T) - 1
    for start in range(0, last, chunk):
        piece = SequenceChunk(pages, start, min(chunk, last - start))
        step = PagedStep(pool, [piece], window=model.window)
        hidden_TD = model(ids_T[None, piece.start : piece.end], cache=step).hidden_BTD[0]
        found.append(model.logits(hidden_TD).float().log_softmax(-1))
    return torch.cat(found)


@dataclass
class MetricSums:
    """What is added up over all tokens of a format, and over their squares for the standard error."""

    tokens: int = 0
    nats: float = 0.0
    difference: float = 0.0
    squares: float = 0.0
    divergence: float = 0.0
    same: int = 0

    def add(self, plain_TV: Tensor, other_TV: Tensor, targets_T: Tensor) -> None:
        nats_T = F.nll_loss(other_TV, targets_T, reduction="none").double()
        difference_T = nats_T - F.nll_loss(plain_TV, targets_T, reduction="none").double()
        self.tokens += len(targets_T)
        self.nats += float(nats_T.sum())
        self.difference += float(difference_T.sum())
        self.squares += float(difference_T.square().sum())
        self.divergence += float(F.kl_div(other_TV, plain_TV, log_target=True, reduction="sum"))
        self.same += int((plain_TV.argmax(-1) == other_TV.argmax(-1)).sum())

    def summary(self, text_bytes: int) -> dict[str, float]:
        mean = self.difference / self.tokens
        variance = max(0.0, self.squares / self.tokens - mean * mean)
        return {
            "nats_per_token": round(self.nats / self.tokens, 5),
            "perplexity": round(math.exp(self.nats / self.tokens), 4),
            "bits_per_byte": round(self.nats / math.log(2) / text_bytes, 5),
            "nats_difference": round(mean, 6),
            "standard_error": round(math.sqrt(variance / self.tokens), 6),
            "divergence": round(self.divergence / self.tokens, 7),
            "same_likeliest_token": round(self.same / self.tokens, 4),
        }


def windows(tokenizer: Tokenizer, texts: Path, tokens: int, context: int) -> Iterator[list[int]]:
    """Yield windows of ``context`` tokens, ``tokens`` of every source together."""
    for file in sorted(texts.glob("*.jsonl")):
        ids: list[int] = []
        with file.open() as lines:
            for line in lines:
                ids += tokenizer.encode(json.loads(line)["text"])
                if len(ids) >= tokens:
                    break
        for start in range(0, min(tokens, len(ids)) - 1, context):
            yield ids[start : min(start + context, tokens)]


def measure(name: str, texts: Path, formats: Sequence[str], tokens: int, context: int, chunk: int) -> dict[str, object]:
    opened = LanguageModel.open(name, device="cpu", weights="plain", dtype="float32", cache_dir=cache_directory())
    model, attention = opened.model, opened.spec.attention
    context = min(context, opened.spec.max_position_embeddings)
    sums = {kind: MetricSums() for kind in formats}
    text_bytes = 0
    for window in windows(opened.tokenizer, texts, tokens, context):
        if len(window) < 2:
            continue
        ids_T = torch.tensor(window)
        text_bytes += len(opened.tokenizer.decode(window[1:]).encode())
        pages = -(-len(window) // PAGE)
        with torch.inference_mode():
            plain_TV = logprobs(model, POOLS["float32"](model, pages), ids_T, chunk)
            for kind, total in sums.items():
                same = kind == "float32"
                other_TV = plain_TV if same else logprobs(model, POOLS[kind](model, pages), ids_T, chunk)
                total.add(plain_TV, other_TV, ids_T[1:])
    widths = {"float32": 32.0, "bfloat16": 16.0} | {
        kind: cache_bits_per_number(attention, kind) for kind in ("int8", "int6")
    }
    return {
        "model": name,
        "attention": attention.label,
        "tokens": next(iter(sums.values())).tokens,
        "bytes": text_bytes,
        "context": context,
        "chunk": chunk,
        "formats": {
            kind: {"bits_per_number": round(widths[kind], 4)} | total.summary(text_bytes)
            for kind, total in sums.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default="runs/quickstart/long-context", help="a run, a directory or a name, e.g. smollm2-135m"
    )
    parser.add_argument("--texts", type=Path, default=Path("runs/quickstart/corpus/held_out"))
    parser.add_argument("--formats", nargs="+", default=list(POOLS), choices=list(POOLS))
    parser.add_argument("--tokens", type=int, default=2048, help="of every source")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    result = measure(a.model, a.texts, a.formats, a.tokens, a.context, a.chunk)
    peers.write(f"cache-loss-{Path(a.model).name}", result, a.out)


if __name__ == "__main__":
    main()
