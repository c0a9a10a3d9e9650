from dataclasses import replace

import pytest

from fathom.errors import SpecError
from fathom.families import preset
from fathom.plan import (
    count_parameters,
    decoding_flops_per_token,
    forward_flops_per_token,
    training_flops_per_token,
    training_memory,
)
from fathom.spec import GroupedQueryAttention


@pytest.mark.parametrize(
    ("name", "tera", "margin"),
    [("deepseek-moe-16b", 74.4, 0.025), ("deepseek-llm-7b", 183.5, 0.005), ("deepseek-moe-145b", 585.6, 0.005)],
)
def test_published_flops_per_4k_tokens(name: str, tera: float, margin: float) -> None:
    # MoE §5.2 and Table 6. The formula is 6 N + 6 L H (d_qk + d_v) S with N the active parameters and the head.
    assert training_flops_per_token(preset(name), 4096) * 4096 / 1e12 == pytest.approx(tera, rel=margin)


def test_training_flops_equal_deepseek_llms_closed_form() -> None:
    # 72 n d^2 + 12 n d l for multi-head attention and a width of 8/3 d, plus 6 V d for the head; with it the papers'
    # 183.5T (7B) and 2057.5T (67B, counted as MHA) per 4K tokens come out.
    layers, width, vocab, context = 5, 768, 1000, 4096
    spec = replace(
        preset("deepseek-llm-7b"),
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        vocab_size=vocab,
        attention=GroupedQueryAttention(num_heads=12, num_kv_heads=12, head_dim=64),
        bos_token_id=None,
        eos_token_id=None,
    )
    norms = 6 * (2 * layers + 1) * width
    closed = 72 * layers * width**2 + 12 * layers * width * context + 6 * vocab * width
    assert training_flops_per_token(spec, context) == closed + norms


def test_attention_grows_with_context_and_stops_at_the_window() -> None:
    mistral = preset("mistral-7b")
    short, window, long = (forward_flops_per_token(mistral, n) for n in (1024, 4096, 65536))
    assert window - short == 2 * 32 * 32 * (2 * 128) * (4096 - 1024)
    assert long == window


def test_absorbed_decoding_meets_latents_and_expanded_prefill_meets_heads() -> None:
    v2 = preset("deepseek-v2")
    weights = 2 * count_parameters(v2).active
    assert decoding_flops_per_token(v2, 1000) - weights == 2 * 60 * 128 * (576 + 512) * 1000
    assert forward_flops_per_token(v2, 1000) - weights == 2 * 60 * 128 * (192 + 128) * 1000
    llama = preset("deepseek-llm-7b")
    assert decoding_flops_per_token(llama, 777) == forward_flops_per_token(llama, 777)


def test_prediction_modules_add_a_layer_and_a_head_to_training() -> None:
    spec = replace(preset("bench-t"), moe=None, first_k_dense_replace=0)
    extra = training_flops_per_token(replace(spec, num_nextn_predict_layers=1), 512)
    extra -= training_flops_per_token(spec, 512)
    deeper = training_flops_per_token(replace(spec, num_hidden_layers=7), 512) - training_flops_per_token(spec, 512)
    own = 6 * (3 * 256 + 2 * 256 * 256)  # three norms and eh_proj
    assert extra == deeper + own + 6 * 4096 * 256


def test_memory_is_sixteen_bytes_a_parameter_plus_activations() -> None:
    spec = preset("bench-t")
    memory = training_memory(spec, tokens=2048)
    assert memory.parameters + memory.gradients + memory.optimizer == 16 * count_parameters(spec).total
    assert memory.logits == 2 * 4 * 1024 * 4096
    assert memory.total == memory.parameters * 4 + memory.activations + memory.logits
    assert training_memory(spec, tokens=4096).activations == 2 * memory.activations
    checkpointed = training_memory(spec, tokens=2048, activation_checkpointing=True)
    assert checkpointed.activations < memory.activations / 3


@pytest.mark.parametrize("context", [0, -1])
def test_a_context_of_nothing_is_refused(context: int) -> None:
    for function in (forward_flops_per_token, decoding_flops_per_token, training_flops_per_token):
        with pytest.raises(SpecError, match="context"):
            function(preset("bench-t"), context)
    with pytest.raises(SpecError, match="tokens"):
        training_memory(preset("bench-t"), tokens=context)
