"""Counts of adapters against attached ones, and memory against what a step holds."""

from __future__ import annotations

import pytest

from fathom.model import build
from fathom.model.adapters.attach import attach
from fathom.model.quantized import QuantizedExperts, QuantizedLinear
from fathom.plan import training_memory
from fathom.plan.lora import lora_parameters
from fathom.spec.adapter import LoraSpec
from tests.published import SPECS

LORAS = [
    LoraSpec(rank=3),
    LoraSpec(rank=2, targets=("mlp", "o_proj", "gate_proj", "up_proj")),
    LoraSpec(
        targets=("q_proj", "layers.0", "layers.1.self_attn.o_proj.weight"), modules_to_save=("lm_head", "embed_tokens")
    ),
]


@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-deepseek_v2", "tiny-deepseek_v3"])
@pytest.mark.parametrize("lora", LORAS)
def test_counts_are_those_of_attached_adapters(name: str, lora: LoraSpec) -> None:
    spec = SPECS[name]
    if name == "tiny-deepseek_v3" and "q_proj" in lora.targets:
        lora = LoraSpec(targets=("q_b_proj",))
    model = build(spec, seed=1)
    names = attach(model, lora, seed=1).names
    assert lora_parameters(spec, lora) == sum(model.get_parameter(each).numel() for each in names)


@pytest.mark.parametrize("form", ["none", "int8", "int4"])
def test_memory_counts_the_frozen_base_and_the_learned_adapter(form: str) -> None:
    spec, lora = SPECS["tiny-llama"], LoraSpec(rank=4, quantize_base=form)
    model = build(spec, seed=1)
    full = sum(parameter.nbytes for parameter in model.parameters())
    learned = sum(model.get_parameter(each).nbytes for each in attach(model, lora, seed=1).names)
    planned = training_memory(spec, tokens=8, adapter=lora)
    assert (planned.gradients, planned.optimizer) == (learned, 2 * learned)
    held = sum(parameter.nbytes for parameter in model.parameters())
    modules = [module for module in model.modules() if isinstance(module, QuantizedLinear | QuantizedExperts)]
    packed = sum(module.qweight.nbytes for module in modules if isinstance(module, QuantizedLinear))
    assert planned.parameters == pytest.approx(held + packed, rel=0.05)
    assert training_memory(spec, tokens=8).parameters == full
    if form == "none":
        assert planned.parameters == held
