"""Windows and relative positions against loops; towers within the decoder."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fathom.errors import SpecError
from fathom.model import StaticCache, build
from fathom.model.vision import ImageBatch
from fathom.model.vision import sam as sam_module
from fathom.model.vision.sam import SamAttention, SamTower, join_windows, split_windows
from fathom.model.vision.siglip import SiglipAttention
from fathom.spec import GroupedQueryAttention, ModelSpec, SamSpec, SiglipSpec, VisionSpec

LOW = SiglipSpec(
    hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20, image_size=12, patch_size=4
)
HIGH = SamSpec(
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    mlp_dim=12,
    image_size=20,
    patch_size=4,
    window_size=3,
    global_attn_indexes=(1,),
    output_channels=4,
)
TWO = VisionSpec(low=LOW, high=HIGH, image_token_id=7, connector="hybrid")
ONE = VisionSpec(low=LOW, image_token_id=7, connector="mlp")
LLAMA = ModelSpec(
    name="small",
    family="llama",
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    attention=GroupedQueryAttention(num_heads=4, num_kv_heads=2, head_dim=4),
    max_position_embeddings=64,
)
BOTH = replace(LLAMA, family="deepseek_vl_hybrid", vision=TWO)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(count: int, size: int = 12) -> ImageBatch:
    return ImageBatch(noise(count, 3, size, size), noise(count, 3, 20, 20, seed=1))


@pytest.mark.parametrize(("rows", "columns", "window"), [(5, 5, 3), (6, 4, 2), (2, 7, 4), (3, 3, 3)])
def test_windows_tile_the_image_and_pad_below_and_right(rows: int, columns: int, window: int) -> None:
    x_IHWD = noise(2, rows, columns, 3)
    windows = split_windows(x_IHWD, window)
    across = -(-columns // window)
    for i in range(2):
        for r in range(-(-rows // window) * window):
            for c in range(across * window):
                number = (i * -(-rows // window) + r // window) * across + c // window
                inside = r < rows and c < columns
                expected = x_IHWD[i, r, c] if inside else torch.zeros(3)
                assert torch.equal(windows[number, r % window, c % window], expected)
    assert torch.equal(join_windows(windows, rows, columns), x_IHWD)


def naive_attention(layer: SamAttention, x_XHWD: Tensor) -> Tensor:
    """One query and one head at a time, from the formula."""
    squares, size, _, width = x_XHWD.shape
    k = layer.head_dim
    heads = width // k
    out = torch.zeros_like(x_XHWD)
    places = [(r, c) for r in range(size) for c in range(size)]
    for x in range(squares):
        q, keys, values = (part.view(size, size, heads, k) for part in layer.qkv(x_XHWD[x]).split(width, dim=-1))
        for head in range(heads):
            for r, c in places:
                query = q[r, c, head]
                scores = torch.stack(
                    [
                        query @ keys[i, j, head] / k**0.5
                        + query @ layer.rel_pos_h[r - i + size - 1]
                        + query @ layer.rel_pos_w[c - j + size - 1]
                        for i, j in places
                    ]
                )
                mixed = sum(p * values[i, j, head] for p, (i, j) in zip(scores.softmax(0), places, strict=True))
                out[x, r, c, head * k : (head + 1) * k] = mixed
    return layer.proj(out)  # type: ignore[no-any-return]


@pytest.mark.parametrize("elements", [1 << 25, 300, 1])
def test_relative_attention_is_the_formula_however_few_rows_at_a_time(
    elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sam_module, "_MAX_BIAS_ELEMENTS", elements)
    layer = SamAttention(HIGH, 4)
    x_XHWD = noise(2, 4, 4, 8)
    with torch.no_grad():
        for index, parameter in enumerate(layer.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=index))
        torch.testing.assert_close(layer(x_XHWD), naive_attention(layer, x_XHWD), rtol=1e-5, atol=1e-5)


def test_a_large_grid_is_resampled_to_the_small_one() -> None:
    tower = SamTower(HIGH, grid=3)
    assert tower(noise(2, 3, 20, 20)).shape == (2, 9, 16)


def test_the_language_model_is_the_llama_where_there_is_no_image() -> None:
    llama, both = build(LLAMA, seed=4), build(BOTH, seed=4)
    for name, tensor in llama.state_dict().items():
        assert torch.equal(both.state_dict()[name], tensor), "towers are drawn last"
    tokens_BT = torch.randint(0, 40, (2, 20), generator=torch.Generator().manual_seed(1))
    assert (tokens_BT == 7).any()
    with torch.no_grad():
        assert torch.equal(both(tokens_BT).hidden_BTD, llama(tokens_BT).hidden_BTD)


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_decoding_text_runs_the_same_operators_with_and_without_towers() -> None:
    seen = []
    for spec in (LLAMA, BOTH):
        model, cache = build(spec).eval(), StaticCache.allocate(spec, batch_size=1, max_length=8)
        with torch.no_grad(), Operators() as operators:
            model(torch.tensor([[3, 4]]), cache=cache)
            model(torch.tensor([[5]]), cache=cache)
        seen.append(operators.seen)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_image_tokens_take_their_places_in_reading_order_and_learn(checkpointed: bool) -> None:
    model = build(BOTH, seed=1)
    tokens_BT = torch.tensor([[1, *[7] * 9, 2, 3, *[4] * 9], [7, 7, 7, 1, *[7] * 6, *[5] * 11]])
    assert model.vision is not None
    features_ND = model.vision(images(2)).flatten(0, 1)
    features_ND.retain_grad()
    out = model(tokens_BT, features_ND=features_ND, checkpoint_activations=checkpointed).hidden_BTD
    alone = model(tokens_BT[1:], features_ND=features_ND[9:]).hidden_BTD
    torch.testing.assert_close(out[1:], alone)
    swapped = model(tokens_BT, features_ND=features_ND.flip(0)).hidden_BTD
    assert not torch.allclose(out, swapped, atol=1e-4)
    out[0, -1].square().sum().backward()
    assert features_ND.grad is not None
    assert features_ND.grad[:9].any()
    assert not features_ND.grad[9:].any()
    for name, parameter in model.vision.named_parameters():
        assert parameter.grad is not None, name


def test_features_keep_the_models_precision() -> None:
    model = build(BOTH, dtype=torch.bfloat16)
    assert model.vision is not None
    features_ND = model.vision(images(1)).flatten(0, 1)
    assert features_ND.dtype == torch.bfloat16
    tokens_BT = torch.tensor([[7] * 9 + [1]])
    with torch.no_grad():
        assert model(tokens_BT, features_ND=features_ND.float()).hidden_BTD.dtype == torch.bfloat16


def test_a_fresh_model_begins_with_the_last_layers_features_only() -> None:
    vision = build(BOTH, seed=2).vision
    assert vision is not None
    assert vision.high is not None
    assert vision.high.alpha.item() == 0
    assert vision.high.neck.layer_norm1.weight.eq(1).all()
    assert not vision.low.layers[0].mlp.fc1.bias.any()
    assert vision.low.position_embedding.weight.std() > 0


@pytest.mark.parametrize(
    ("batch", "vision", "message"),
    [
        (images(1, size=8), TWO, r"low_IAXY: is \(1, 3, 8, 8\) instead of \(I, 3, 12, 12\)"),
        (ImageBatch(noise(3, 12, 12)), ONE, r"low_IAXY: is \(3, 12, 12\)"),
        (ImageBatch(noise(1, 3, 12, 12)), TWO, "high_IAXY: is missing"),
        (images(1), ONE, "high_IAXY: the model has no high-resolution tower"),
        (ImageBatch(noise(2, 3, 12, 12), noise(1, 3, 20, 20)), TWO, "high_IAXY: holds 1 images, low_IAXY 2"),
        (ImageBatch(noise(1, 3, 12, 12), noise(1, 4, 20, 20)), TWO, r"high_IAXY: is \(1, 4, 20, 20\)"),
    ],
)
def test_images_that_do_not_fit_the_towers_are_refused(batch: ImageBatch, vision: VisionSpec, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        batch.check(vision)


@pytest.mark.parametrize(
    ("spec", "features", "message"),
    [
        (LLAMA, noise(9, 16), "features_ND: small has no vision towers"),
        (BOTH, noise(8, 16), r"features_ND: has 8 rows for 9 image tokens \(7\) in the text; place 9"),
        (BOTH, noise(9, 15), r"features_ND: is \(9, 15\) instead of \(N, 16\)"),
        (BOTH, noise(1, 9, 16), r"features_ND: is \(1, 9, 16\) instead of \(N, 16\)"),
    ],
)
def test_features_that_do_not_fit_the_text_are_refused_before_the_cache_moves(
    spec: ModelSpec, features: Tensor, message: str
) -> None:
    model, cache = build(spec), StaticCache.allocate(spec, batch_size=1, max_length=16)
    with pytest.raises(SpecError, match=message):
        model(torch.tensor([[7] * 9 + [1]]), features_ND=features, cache=cache)
    assert max(cache.lengths) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: replace(LOW, image_size=13), "image_size: 13 is not a multiple of 4"),
        (lambda: replace(LOW, num_attention_heads=5), "hidden_size: 12 is not a multiple of 5"),
        (lambda: replace(LOW, hidden_act="relu"), "hidden_act: unknown value 'relu'"),
        (lambda: replace(LOW, layer_norm_eps=0.0), "layer_norm_eps: must be above 0"),
        (lambda: replace(LOW, intermediate_size=0), "intermediate_size: must be above 0"),
        (lambda: replace(HIGH, mlp_dim=0), "mlp_dim: must be above 0"),
        (lambda: replace(HIGH, window_size=0), "window_size: must be above 0"),
        (lambda: replace(HIGH, global_attn_indexes=()), "global_attn_indexes"),
        (lambda: replace(HIGH, global_attn_indexes=(1, 1)), "global_attn_indexes"),
        (lambda: replace(HIGH, global_attn_indexes=(2,)), r"global_attn_indexes: \[2\] are not distinct layers of 2"),
        (lambda: replace(TWO, connector="mlp"), "connector: mlp does not join two towers"),
        (lambda: replace(ONE, connector="hybrid"), "connector: hybrid does not join one tower"),
        (lambda: replace(ONE, image_token_id=-1), "image_token_id"),
        (lambda: replace(BOTH, vocab_size=7), "vision.image_token_id: 7 is outside the vocabulary of 7"),
        (lambda: replace(BOTH, hidden_size=15), "hidden_size: 15 is not a multiple of 2"),
        (lambda: replace(BOTH, num_nextn_predict_layers=1), "num_nextn_predict_layers"),
    ],
)
def test_towers_that_cannot_be_built_are_refused(change: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        change()


def shard_of(attention: Any, names: tuple[str, str], part: slice) -> Any:
    """A copy with some heads only: rows of queries, keys and values, columns of the output; the first has its bias."""
    shard, width = copy.deepcopy(attention), attention.head_dim
    columns = slice(part.start * width, part.stop * width)
    qkv, out = (shard.get_submodule(name) for name in names)
    dim = out.weight.shape[0]
    qkv.weight = nn.Parameter(qkv.weight.view(3, dim, dim)[:, columns].flatten(0, 1))
    qkv.bias = nn.Parameter(qkv.bias.view(3, dim)[:, columns].flatten())
    out.weight = nn.Parameter(out.weight[:, columns])
    out.bias = nn.Parameter(out.bias if part.start == 0 else torch.zeros_like(out.bias))
    return shard


@pytest.mark.parametrize("tower", ["siglip", "sam"])
def test_shards_of_the_heads_add_up_to_the_whole_attention(tower: str) -> None:
    if tower == "siglip":
        attention, names, x = SiglipAttention(12, 4), ("qkv_proj", "out_proj"), noise(2, 9, 12)
    else:
        attention, names, x = SamAttention(replace(HIGH, num_attention_heads=4), 3), ("qkv", "proj"), noise(2, 3, 3, 8)
    with torch.no_grad():
        for index, parameter in enumerate(attention.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=index))
        parts = [shard_of(attention, names, part)(x) for part in (slice(0, 1), slice(1, 4))]
        torch.testing.assert_close(sum(parts), attention(x))
