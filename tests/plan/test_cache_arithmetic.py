from dataclasses import replace

import pytest

from fathom.errors import SpecError
from fathom.families import preset
from fathom.plan import cache_bytes, cache_bytes_per_token, cache_numbers_per_token, compare_caches
from fathom.plan.cache import with_attention
from fathom.spec import LatentAttention


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
