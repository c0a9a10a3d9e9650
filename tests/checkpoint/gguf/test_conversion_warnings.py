from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fathom.checkpoint.gguf.conversion_warnings import conversion_warnings
from fathom.spec import (
    BalanceSpec,
    GroupedQueryAttention,
    GroupLimited,
    LatentAttention,
    ModelSpec,
    RouterSpec,
    YarnScaling,
)

SpecOf = Callable[[str], ModelSpec]


def test_what_a_file_holds_whole_is_no_loss(spec_of: SpecOf) -> None:
    names = ("llama", "llama biased and tied", "llama linear", "llama 3", "llama yarn", "mixtral", "qwen2", "deepseek")
    for name in (*names, "deepseek_v2", "deepseek_v2 dense", "deepseek_v2 in halves", "deepseek_v3"):
        assert conversion_warnings(spec_of(name)) == (), name


def test_settings_of_training_are_named(spec_of: SpecOf) -> None:
    spec = spec_of("deepseek_v2")
    assert spec.moe is not None
    router = replace(spec.moe.router, balance=BalanceSpec(expert_loss=0.01))
    spec = replace(spec, initializer_range=0.02, moe=replace(spec.moe, router=router))
    assert conversion_warnings(spec) == (
        "settings of training are not kept: moe.router.balance.expert_loss, initializer_range",
    )


def test_every_difference_of_llama_cpp_has_its_sentence(spec_of: SpecOf) -> None:
    llama, moe16, v2 = spec_of("llama"), spec_of("deepseek"), spec_of("deepseek_v2")
    assert moe16.moe is not None
    assert v2.moe is not None
    assert isinstance(v2.attention, LatentAttention)
    assert isinstance(v2.rope.scaling, YarnScaling)
    grouped = replace(v2.moe.router, select=GroupLimited(n_group=4, topk_group=2))
    alone = replace(v2.moe.router, select=GroupLimited(n_group=12, topk_group=4))
    narrow = GroupedQueryAttention(num_heads=4, num_kv_heads=2, head_dim=8)
    direct = replace(v2.attention, q_lora_rank=None)
    fast = replace(v2.rope.scaling, beta_fast=8.0)
    uneven = replace(v2.rope.scaling, truncate=False)
    cases = [
        (spec_of("mistral"), "attention.sliding_window: llama.cpp attends to all tokens, not to 24"),
        (replace(v2, moe=replace(v2.moe, router=grouped)), "moe.router.select: llama.cpp ranks groups by the sum"),
        (replace(v2, moe=replace(v2.moe, router=alone)), "moe.router.select: llama.cpp cannot open the file"),
        (
            replace(moe16, moe=replace(moe16.moe, router=RouterSpec(normalize=True))),
            "moe.router.normalize: llama.cpp does",
        ),
        (replace(moe16, moe=replace(moe16.moe, n_shared_experts=0)), "moe.n_shared_experts: llama.cpp cannot open"),
        (replace(moe16, attention=narrow), "attention: llama.cpp cannot open the file, as its heads are 32 wide"),
        (replace(v2, attention=direct), "attention.q_lora_rank: older releases of llama.cpp open models"),
        (replace(v2, num_hidden_layers=27), "attention.q_lora_rank: llama.cpp cannot open the file, as it takes 27"),
        (replace(v2, rope=replace(v2.rope, scaling=fast)), "rope.scaling: llama.cpp reads no beta_fast and beta_slow"),
        (replace(v2, rope=replace(v2.rope, scaling=uneven)), "rope.scaling.truncate: llama.cpp rounds"),
        (spec_of("deepseek_v3 with MTP"), "num_nextn_predict_layers: older releases of llama.cpp"),
        (replace(llama, family="mistral"), "family: mistral reads back as llama"),
    ]
    for spec, sentence in cases:
        assert any(found.startswith(sentence) for found in conversion_warnings(spec)), (
            sentence,
            conversion_warnings(spec),
        )
    assert conversion_warnings(replace(v2, attention=direct, num_hidden_layers=27)) == ()


def test_rows_that_are_no_whole_blocks_are_named(spec_of: SpecOf) -> None:
    spec = spec_of("deepseek_v2")
    assert conversion_warnings(spec, "F16") == ()
    assert conversion_warnings(spec, "Q8_0") == (
        "3 tensors are stored as F16, as their rows are no multiple of 32, such as blk.0.attn_q_b.weight",
    )
