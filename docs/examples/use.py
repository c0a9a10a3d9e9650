"""Open a trained run, look at its next-token distribution, and let it continue."""

from __future__ import annotations

import fathom
from fathom.spec import SamplingParams

m = fathom.load("runs/quickstart/long-context")
tokens = [m.tokenizer.bos_id, *m.tokenizer.encode("def __init__(self, ")]
logits = m.logits(tokens)
print("logits", tuple(logits.shape))
best = logits[-1].softmax(-1).topk(3)
print(
    "likely next:",
    [(m.tokenizer.decode([i]), round(p, 3)) for i, p in zip(best.indices.tolist(), best.values.tolist())],
)
print("greedy:", repr(m.tokenizer.decode(m.generate(tokens, SamplingParams(max_tokens=12, temperature=0)))))
print("attention:", m.spec.attention.label, "-", m.cache_bytes_per_token, "bytes of cache per token")
