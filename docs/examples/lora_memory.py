"""What training takes by arithmetic: all weights, LoRA over all linear layers, and LoRA over packed weights."""

from __future__ import annotations

from fathom.families import preset
from fathom.plan import training_memory
from fathom.plan.lora import lora_parameters
from fathom.spec.adapter import LoraSpec

TOKENS = 4096
LORA = LoraSpec(rank=16)
ways = {
    "all weights": None,
    "LoRA": LORA,
    "LoRA over int8": LoraSpec(quantize_base="int8"),
    "LoRA over int4": LoraSpec(quantize_base="int4"),
}
print(f"GB of float32 training, micro-batches of {TOKENS} tokens, layers recomputed in the backward pass")
for name in ("deepseek-v2-lite", "deepseek-r1-distill-qwen-1.5b"):
    spec = preset(name)
    print(f"{name}: {lora_parameters(spec, LORA):,} parameters of an adapter of rank 16")
    for way, adapter in ways.items():
        memory = training_memory(spec, tokens=TOKENS, activation_checkpointing=True, adapter=adapter)
        learned = memory.gradients + memory.optimizer
        sizes = [size / 1e9 for size in (memory.parameters, learned, memory.total)]
        print("  {:15} weights {:6.2f}  gradients and moments {:7.2f}  total {:7.2f}".format(way, *sizes))
