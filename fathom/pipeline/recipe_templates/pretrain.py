"""A recipe that pretrains a small model on a folder of text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fathom.data.folders.documents import folder_sources
from fathom.errors import DataError
from fathom.pipeline.forecast.pace import UTILISATION, training_pace, training_peak
from fathom.pipeline.forecast.text_size import TextSize, bytes_per_token, text_size
from fathom.pipeline.forecast.totals import free_memory
from fathom.pipeline.recipe_templates.request import Request
from fathom.pipeline.recipe_templates.sizes import SHAPES, Shape, largest_shape, make_spec, model_table, vocabulary
from fathom.pipeline.recipe_templates.toml_text import lines, value
from fathom.plan.count import count_parameters, short_count
from fathom.plan.flops import training_flops_per_token
from fathom.progress import size
from fathom.spec.train import AdamWSpec, UpdateSpec

_UNKNOWN_FLOPS = 2e13
_STEPS = 600


def pretrain(request: Request) -> str:
    """Return the recipe's text.

    Raises:
        DataError: there is too little text.
    """
    request.required("--text", request.text)
    sizes = [text_size(source) for source in folder_sources(request.text)]
    text_bytes = sum(found.text_bytes for found in sizes)
    vocab_size = vocabulary(text_bytes)
    sample = [text for found in sizes for text in found.sample]
    unique = 0.95 * text_bytes / bytes_per_token(sample, vocab_size)
    length = 128 if unique < 300_000 else 256
    if unique < 16 * length:
        raise DataError(f"--text: {text_bytes} bytes of text are too little to learn from; give at least 10 kB")
    shape, tokens, pace = _choose(request, vocab_size, unique, length)
    batch, steps = _batches(tokens, length)
    table = model_table(shape, family=request.family, name=request.name, vocab_size=vocab_size, context=length)
    return _text(request, table, sizes, unique=unique, length=length, batch=batch, steps=steps, pace=pace)


def _choose(request: Request, vocab_size: int, unique: float, length: int) -> tuple[Shape, float, str]:
    """Return a shape, its training tokens, and how its pace is known: reckoned, then measured and corrected once."""
    peak = training_peak(request.device)
    flops = UTILISATION * (peak if peak is not None else _UNKNOWN_FLOPS)

    def make(shape: Shape) -> Any:
        return make_spec(model_table(shape, family=request.family, name="new", vocab_size=vocab_size, context=length))

    basis = "estimated"
    bounds: dict[str, Any] = {"unique_tokens": unique, "memory": free_memory(request.device), "length": length}
    shape, tokens = largest_shape(make, seconds=request.seconds, flops=flops, batch_tokens=8 * length, **bounds)
    for _ in range(2):
        spec = make(shape)
        pace = training_pace(spec, _update(shape), sequences=8, length=length, device=request.device, peak=peak)
        if pace is None or not pace.measured:
            break
        basis = "measured"
        second = pace.token + pace.update / (8 * length)
        flops = training_flops_per_token(spec, length) / second
        chosen, tokens = largest_shape(make, seconds=request.seconds, flops=flops, batch_tokens=8 * length, **bounds)
        if SHAPES.index(chosen) >= SHAPES.index(shape):
            tokens = min(request.seconds / second, 8 * unique)
            break
        shape = chosen
    return shape, tokens, basis


def _update(shape: Shape) -> UpdateSpec:
    return UpdateSpec(optimizer=AdamWSpec(lr=learning_rate(shape.hidden_size)))


def learning_rate(hidden_size: int) -> float:
    """Return a rate that falls with the model's width: 2.5e-3 at 192, 1.2e-3 at 512."""
    return float(f"{min(4e-3, 2.5e-3 * math.pow(192 / hidden_size, 0.75)):.1e}")


def _batches(tokens: float, length: int) -> tuple[int, int]:
    """Return sequences a step, and steps: several hundred where there are tokens enough."""
    sequences = tokens / length
    batch = 2 ** max(2, min(8, round(math.log2(max(1.0, sequences / _STEPS)))))
    return batch, max(20, math.floor(sequences / batch))


def _text(
    request: Request,
    table: dict[str, Any],
    sizes: list[TextSize],
    *,
    unique: float,
    length: int,
    batch: int,
    steps: int,
    pace: str,
) -> str:
    count = count_parameters(make_spec(table))
    counted = "counted" if all(found.counted for found in sizes) else "estimated from a sample"
    train = _training(length, batch, steps, learning_rate(table["hidden_size"]))
    read = train["total_tokens"] / unique
    passes = f"{steps} steps: {read:.1f} passes over {short_count(round(unique))}, {counted}"
    vocabulary_of = f"tokens, for {size(sum(found.text_bytes for found in sizes))} of text"
    return f"""# Pretraining on your own text: {short_count(count.total)} parameters, \
of which a token uses {short_count(count.active)}.
# Sized for about {request.time} on this machine (pace {pace}).
#
#     fathom recipe check {request.file}
#     fathom train {request.file} --out runs/{request.name}
name = {value(request.name)}
{_table("model", table, {**_MODEL_COMMENTS, "vocab_size": vocabulary_of})}
[[steps]] # reads and cleans the text, removes repetitions, holds documents out for measuring
kind = "corpus"
text = {value([request.written(path) for path in request.text])}

[[steps]] # learns a vocabulary of the text's own
kind = "tokenizer"
vocab_size = {table["vocab_size"]}

[[steps]] # the text as tokens
kind = "shards"

[[steps]]
kind = "train"
name = "pretrain"

[steps.train]
{lines(train, {**_TRAIN_COMMENTS, "total_tokens": passes})}

[[steps]] # bits per byte of held-out text: lower is better
kind = "evaluate"

[[steps]] # what the model writes: beginnings of your documents, continued
kind = "sample"
prompts = {value(_prompts(sizes))}
sampling = {{ max_tokens = 64, temperature = 0.7, top_p = 0.9, seed = 1 }}

[[steps]]
kind = "report"
"""


def _training(length: int, batch: int, steps: int, rate: float) -> dict[str, Any]:
    """Return [steps.train]."""
    return {
        "sequence_length": length,
        "total_tokens": steps * batch * length,
        "batch": {"size": batch, "micro_batch_size": min(batch, 8)},
        "optimizer": {"lr": rate},
        "schedule": {"kind": "cosine", "warmup_fraction": 0.03, "final": 0.1},
        "log_every_steps": max(1, steps // 60),
        "evaluate_every_steps": max(1, steps // 8),
        "checkpoint": {"every_seconds": 120.0, "keep": 1},
    }


def _table(where: str, table: dict[str, Any], comments: Mapping[str, str]) -> str:
    """Return a table of the recipe; tables in it become tables of their own."""
    own = {name: item for name, item in table.items() if not isinstance(item, dict)}
    note = _TABLE_COMMENTS.get(f"{where}.{own['kind']}" if "kind" in own else where)
    head = f"\n[{where}]{f' # {note}' if note else ''}\n{lines(own, comments)}\n" if own else ""
    within = (_table(f"{where}.{name}", item, comments) for name, item in table.items() if isinstance(item, dict))
    return head + "".join(within)


_MODEL_COMMENTS = {
    "hidden_size": "the largest that learns from enough tokens in the time given",
    "max_position_embeddings": "tokens that the model sees at once",
    "first_k_dense_replace": "the first layer has no experts (V2 §3.1.2)",
    "tie_word_embeddings": "one matrix reads and predicts tokens: half the parameters of a small model",
    "kv_lora_rank": "the latent that the cache holds of each token",
    "qk_rope_head_dim": "the shared rotated key beside it",
    "n_routed_experts": "experts a layer",
    "num_experts_per_tok": "of which each token takes these",
    "n_shared_experts": "and these always",
    "expert_loss": "keeps all experts in use (V2 §2.2.3)",
    "bias_update_rate": "keeps all experts in use without a loss (V3 §2.1.2)",
}
_TABLE_COMMENTS = {
    "model.attention.mla": "V2 §2.1: keys and values of all heads from one small latent",
    "model.attention.gqa": "every head has keys and values of its own",
    "model.moe": "fine-grained experts beside shared ones (DeepSeekMoE §3)",
}
_TRAIN_COMMENTS = {
    "sequence_length": "tokens a sequence",
    "batch": "sequences a step, and as many of them at once as memory holds easily",
    "optimizer": "smaller models take larger rates",
    "schedule": "a short warm-up, then a half cosine down to a tenth",
    "evaluate_every_steps": "held-out bits per byte, eight times",
    "checkpoint": "an interruption loses two minutes at most; one checkpoint is kept",
}


def _prompts(sizes: list[TextSize]) -> list[str]:
    """Return the first words of a few documents."""
    starts = [" ".join(text.split()[:4]) for found in sizes for text in found.sample]
    starts = list(dict.fromkeys(start[:60] for start in starts if start))
    return starts[:: max(1, len(starts) // 4)][:4]
