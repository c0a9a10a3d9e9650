from dataclasses import replace

import pytest

from fathom.errors import SpecError
from fathom.families import PRESETS, preset
from fathom.plan import (
    cache_bits_per_number,
    cache_bytes,
    cache_bytes_per_token,
    cache_numbers_per_token,
    compare_caches,
)
from fathom.plan.cache import with_attention
from fathom.spec import CacheFormat, GroupedQueryAttention, LatentAttention


def test_v2_saves_93_3_percent_of_67bs_cache() -> None:
    v2 = cache_bytes_per_token(preset("deepseek-v2"), bits=6)  # V2 §3.2.3: 6 bits on average
    dense = cache_bytes_per_token(preset("deepseek-llm-67b"), bits=16)
    assert v2 == 25_920
    assert dense == 389_120
    assert round(100 * (1 - v2 / dense), 1) == 93.3


@pytest.mark.parametrize(("bits", "saved"), [(6, 93.3), (8, 91.1), (16, 82.2)])
def test_the_saving_at_other_widths(bits: int, saved: float) -> None:
    ratio = cache_bytes_per_token(preset("deepseek-v2"), bits=bits) / 389_120
    assert round(100 * (1 - ratio), 1) == saved


def test_table_9_small_pair() -> None:
    lite = preset("deepseek-v2-lite")
    assert cache_numbers_per_token(with_attention(lite, 16)) == 110_592
    assert cache_numbers_per_token(lite) == 15_552


def test_table_9_large_pair() -> None:
    v2 = preset("deepseek-v2")
    assert isinstance(v2.attention, LatentAttention)
    large = replace(v2, attention=replace(v2.attention, num_heads=56))
    assert cache_numbers_per_token(with_attention(large, 56)) == 860_160
    assert cache_numbers_per_token(large) == 34_560


def test_v3_caches_576_numbers_a_layer() -> None:
    assert cache_numbers_per_token(preset("deepseek-v3")) == 35_136
    assert cache_bytes_per_token(preset("deepseek-v3")) == 70_272


def test_comparison_orders_the_four_mechanisms() -> None:
    compared = compare_caches(preset("deepseek-v2"))
    assert list(compared) == ["MHA", "GQA-8", "MQA", "MLA-512+64"]
    assert compared["MHA"] == 60 * 2 * 128 * 128 * 2
    assert compared["GQA-8"] == compared["MHA"] / 16
    assert compared["MQA"] == compared["MHA"] / 128
    assert compared["MLA-512+64"] == pytest.approx(2.25 * compared["MQA"])  # V2 Table 1: GQA with 2.25 groups


def test_comparison_leaves_out_gqa_8_where_heads_do_not_divide() -> None:
    assert list(compare_caches(preset("bench-t"))) == ["MHA", "MQA", "MLA-64+32"]


def test_a_window_bounds_what_a_sequence_holds() -> None:
    mistral = preset("mistral-7b")
    per_token = cache_bytes_per_token(mistral)
    assert per_token == 32 * 2 * 8 * 128 * 2
    assert cache_bytes(mistral, 1000) == 1000 * per_token
    assert cache_bytes(mistral, 100_000) == 4096 * per_token
    assert cache_bytes(preset("bench-t"), 100_000) == 100_000 * cache_bytes_per_token(preset("bench-t"))


def test_senseless_widths_and_contexts_are_refused() -> None:
    with pytest.raises(SpecError, match="bits"):
        cache_bytes_per_token(preset("bench-t"), bits=0)
    with pytest.raises(SpecError, match="context"):
        cache_bytes(preset("bench-t"), 0)


def test_v2s_stored_bytes_save_93_3_percent_of_67bs_cache() -> None:
    stored = cache_bytes_per_token(preset("deepseek-v2"), cache_format="int6")
    latents, rotary_key, scales = 512 * 11 // 16, 64, 2 * (512 // 128 + 64 // 16)
    assert stored == 60 * (latents + rotary_key + scales) == 25_920
    dense = cache_bytes_per_token(preset("deepseek-llm-67b"))
    assert dense == 95 * 2 * 8 * 128 * 2
    assert round(100 * (1 - stored / dense), 1) == 93.3


@pytest.mark.parametrize("name", PRESETS)
def test_bits_of_a_number_are_those_of_its_codes_and_its_share_of_a_scale(name: str) -> None:
    spec = preset(name)
    attention = spec.attention
    if isinstance(attention, LatentAttention):
        latent, rotary = attention.kv_lora_rank, attention.qk_rope_head_dim
        scales = latent / min(latent, 128) + rotary / 16
        eight = 8 + 16 * scales / (latent + rotary)
        six = (5.5 * latent + 8 * rotary + 16 * scales) / (latent + rotary)
    else:
        eight, six = 8.5, 6.0
    for cache_format, bits in (("int8", eight), ("int6", six)):
        assert cache_bits_per_number(attention, cache_format) == pytest.approx(bits, rel=1e-12)
        stored = cache_bytes_per_token(spec, cache_format=cache_format)
        assert stored == pytest.approx(cache_numbers_per_token(spec) * bits / 8, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith("bench-")])
def test_published_shapes_take_6_bits_a_number_exactly(name: str) -> None:
    assert cache_bits_per_number(preset(name).attention, "int6") == 6


@pytest.mark.parametrize(
    ("heads", "width", "cache_format", "row"),
    [
        (2, 8, "int8", 2 * 2 + 16),  # groups are no longer than heads
        (2, 8, "int6", 2 * 2 + 22),  # pairs come in blocks of 32 numbers
        (3, 50, "int6", 6 * 2 + 5 * 22),  # groups of 25: 32 does not divide 50
        (1, 34, "int8", 2 * 2 + 34),
    ],
)
def test_odd_widths_are_filled_up(heads: int, width: int, cache_format: CacheFormat, row: int) -> None:
    attention = GroupedQueryAttention(num_heads=heads, num_kv_heads=heads, head_dim=width)
    spec = replace(preset("tiny-dense"), attention=attention)
    assert cache_bytes_per_token(spec, cache_format=cache_format) == 2 * spec.num_hidden_layers * row


def test_a_row_takes_an_even_number_of_bytes() -> None:
    attention = LatentAttention(num_heads=1, kv_lora_rank=7, qk_nope_head_dim=8, qk_rope_head_dim=2, v_head_dim=8)
    spec = replace(preset("bench-t"), attention=attention)
    assert cache_bytes_per_token(spec, cache_format="int8") == spec.num_hidden_layers * (2 * 2 + 7 + 2 + 1)


def test_a_window_bounds_quantized_bytes_too() -> None:
    mistral = preset("mistral-7b")
    per_token = cache_bytes_per_token(mistral, cache_format="int6")
    assert per_token == 32 * 2 * 8 * 128 * 6 / 8
    assert cache_bytes(mistral, 100_000, cache_format="int6") == 4096 * per_token
