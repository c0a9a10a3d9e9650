"""Ask transformers, the exported directory and the exported GGUF file for the same continuation."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fathom
from fathom.spec import SamplingParams

theirs = AutoModelForCausalLM.from_pretrained("exports/quickstart", dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained("exports/quickstart")
prompt = tokenizer("The city of", return_tensors="pt")
result = theirs.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt.input_ids.shape[1] :]
print("transformers:", repr(tokenizer.decode(result, skip_special_tokens=True)))
for name in ("runs/quickstart", "exports/quickstart", "exports/quickstart.gguf"):
    m = fathom.load(name)
    ids = [*m.tokenizer.prefix_ids, *m.tokenizer.encode("The city of")]
    assert ids == prompt.input_ids[0].tolist()
    print(f"{name}:", repr(m.tokenizer.decode(m.generate(ids, SamplingParams(max_tokens=24, temperature=0)))))
