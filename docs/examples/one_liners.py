"""A model in one line, and the same model with its weights in 4 bits and its cache in 6."""

from __future__ import annotations

import fathom
from fathom.spec import EngineSpec

m = fathom.load("smollm2-135m")
print(m.chat("Name the capital of France in one short sentence.", temperature=0, max_tokens=30))

for delta in m.chat("Count from one to five.", temperature=0, max_tokens=30, stream=True):
    print(repr(delta.text), end=" ")
print()

small = fathom.load("smollm2-135m", weights="int4", engine=EngineSpec(cache_format="int6"))
answer = small.chat("Name the capital of France in one short sentence.", temperature=0, max_tokens=30)
print(answer, "-", answer.usage)
print(f"{m.cache_bytes_per_token:,.0f} bytes of cache per token, {small.cache_bytes_per_token:,.0f} packed")
