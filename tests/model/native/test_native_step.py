"""The native step against the modules it was made from: families, routers, batches, chunks, caches, MTP."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from fathom.model import Decoder, build
from fathom.model.cache import PagedStep, PagePool, SequenceChunk
from fathom.model.moe import chosen_experts
from fathom.model.native import NativeModel
from fathom.model.native.structs import AttentionForm
from fathom.model.quantize import QuantFormat, quantize, set_activations
from fathom.spec import CacheFormat, ModelSpec
from tests.model.native.models import ALL
from tests.model.test_paged import Tables
from tests.published import SPECS

pytestmark = pytest.mark.usefixtures("native")
PAGE = 4


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def make_model(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> Decoder:
    """Build one whose biases and selection biases are not zeros."""
    model = build(spec, seed=3, dtype=dtype).eval()
    draw = torch.Generator().manual_seed(4)
    for name, tensor in model.state_dict().items():
        if name.endswith("bias"):
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=draw))
    return model


class Twins:
    """A model's modules and its native step, each over a pool of its own."""

    def __init__(
        self, spec: ModelSpec, threads: int, cache_format: CacheFormat = "plain", model: Decoder | None = None
    ) -> None:
        self.model = make_model(spec) if model is None else model
        extra = int(len(self.model.mtp) > 0)
        self.pool, self.other = (
            PagePool.allocate(spec, pages=80, page_size=PAGE, extra_layers=extra, cache_format=cache_format)
            for _ in range(2)
        )
        native = NativeModel.of(self.model, self.other, threads)
        assert isinstance(native, NativeModel), native
        self.native = native

    @torch.inference_mode()
    def step(self, chunks: list[SequenceChunk], tokens: Tensor, rows: list[int]) -> None:
        """Run both and compare them."""
        output = self.model(tokens[None], cache=PagedStep(self.pool, chunks, window=self.model.window))
        got = self.native.step(tokens.tolist(), chunks, logit_rows=rows, routing=True)
        close(got.hidden_ND, output.hidden_BTD[0])
        close(got.logits_XV, self.model.logits(output.hidden_BTD[0, rows]))
        if output.routing:
            assert got.routes_NLK is not None
            assert torch.equal(got.routes_NLK, chosen_experts(output.routing)[0].to(torch.int16))
        else:
            assert got.routes_NLK is None

    def share_cache(self) -> None:
        """Let the native step's pages be those of the modules."""
        for ours, theirs in zip(self.other.layers, self.pool.layers, strict=True):
            for to, pages in zip(ours, theirs, strict=True):
                name = "rows_NX" if hasattr(pages, "rows_NX") else "rows_NY"
                getattr(to, name).copy_(getattr(pages, name))


def random_mixture(twins: Twins, draw: random.Random, texts: int) -> None:
    """Compare steps over sequences of random lengths, each read in random chunks, beside each other."""
    vocabulary = twins.model.spec.vocab_size
    tables, held = Tables(twins.pool, twins.model.window, draw.randrange(100)), [0] * texts
    lengths = [draw.randint(12, 40) for _ in range(texts)]
    while any(held[i] < lengths[i] for i in range(texts)):
        open_texts = [i for i in range(texts) if held[i] < lengths[i]]
        chosen = [i for i in open_texts if draw.random() < 0.7] or open_texts[:1]
        sizes = [min(draw.choice([1, 1, 1, 2, 7, 20]), lengths[i] - held[i]) for i in chosen]
        order = sorted(zip(sizes, chosen, strict=True))
        chunks = [tables.slice(i, size) for size, i in order]
        for size, i in order:
            held[i] += size
        count = sum(sizes)
        tokens = torch.tensor([draw.randrange(vocabulary) for _ in range(count)])
        twins.step(chunks, tokens, sorted(draw.sample(range(count), draw.randint(0, count))))


@pytest.mark.parametrize(("threads", "form"), [(1, "rows"), (3, "cheapest"), (2, "tiles"), (3, "expanded")])
@pytest.mark.parametrize("name", ALL)
def test_any_mixture_of_chunks_equals_the_modules(name: str, threads: int, form: AttentionForm) -> None:
    twins = Twins(ALL[name], threads)
    twins.native.attention_form = form
    assert twins.native.attention_form == form
    random_mixture(twins, random.Random(f"{name} {threads}"), texts=4 if threads > 1 else 1)


@pytest.mark.parametrize("name", ["tiny-deepseek_v2", "tiny-llama"])
def test_prompts_beside_decoding_equal_the_modules(name: str) -> None:
    """Chunks long enough for tiles by themselves, between chunks that are not."""
    twins = Twins(ALL[name], 3)
    tables, draw = Tables(twins.pool, twins.model.window, 14), torch.Generator().manual_seed(15)
    for sizes in ([3, 64, 2], [1, 1, 66, 80]):
        chunks = [tables.slice(i, size) for i, size in enumerate(sizes)]
        tokens = torch.randint(0, twins.model.spec.vocab_size, (sum(sizes),), generator=draw)
        twins.step(chunks, tokens, [0, len(tokens) - 1])


@pytest.mark.parametrize("cache_format", ["int8", "int6"])
@pytest.mark.parametrize("name", ["tiny-deepseek_v2", "tiny-llama", "tiny-mistral"])
def test_quantized_caches_are_read_as_the_modules_read_them(name: str, cache_format: CacheFormat) -> None:
    twins = Twins(ALL[name], 2, cache_format)
    tables, draw = Tables(twins.pool, twins.model.window, 5), torch.Generator().manual_seed(6)
    prompts = [tables.slice(i, length) for i, length in enumerate((9, 30))]
    tokens = torch.randint(0, twins.model.spec.vocab_size, (39,), generator=draw)
    with torch.inference_mode():
        twins.model(tokens[None], cache=PagedStep(twins.pool, prompts, window=twins.model.window))
    for _ in range(3):
        twins.share_cache()
        twins.step([tables.slice(i, 1) for i in range(2)], tokens[:2], [0, 1])


def test_bfloat16_weights_are_multiplied_by_activations_in_float32() -> None:
    spec = SPECS["tiny-deepseek_v3"]
    halves = make_model(spec, torch.bfloat16)
    wide = build(spec, seed=0).eval()
    wide.load_state_dict(halves.state_dict())
    twins = Twins(spec, 2, model=wide)
    native = NativeModel.of(halves, twins.other, 2)
    assert isinstance(native, NativeModel)
    twins.native = native
    random_mixture(twins, random.Random(7), texts=3)


@torch.inference_mode()
def test_the_mtp_module_equals_the_modules() -> None:
    spec = SPECS["tiny-deepseek_v3"]
    twins, draw = Twins(spec, 2), torch.Generator().manual_seed(8)
    tables = Tables(twins.pool, None, 9)
    for name in range(2):
        tables.held[name] = 1
    for sizes in ([5, 9], [1, 1], [1, 6]):
        chunks = [tables.slice(i, size) for i, size in enumerate(sizes)]
        tokens = torch.randint(0, spec.vocab_size, (sum(sizes),), generator=draw)
        previous_ND = torch.randn(sum(sizes), spec.hidden_size, generator=draw)
        step = PagedStep(twins.pool, chunks, first_layer=spec.num_hidden_layers, empty_slots=1)
        expected = twins.model.forward_mtp(tokens[None], previous_ND[None], step)[0]
        got = twins.native.forward_mtp(tokens.tolist(), chunks, previous_ND, empty_slots=1)
        close(got, expected)
        close(twins.native.logits(got), twins.model.logits(expected))


def test_changed_weights_are_packed_again() -> None:
    twins, draw = Twins(ALL["tiny-deepseek"], 1), random.Random(10)
    random_mixture(twins, draw, texts=1)
    with torch.no_grad():
        for parameter in twins.model.parameters():
            parameter.add_(0.02)
    twins.native.follow_changes()
    random_mixture(twins, draw, texts=1)


QUANTIZED = pytest.mark.parametrize(("name", "format"), [("wide", "int4"), ("wide", "int8"), ("tiny-qwen2", "int4")])


@QUANTIZED
def test_quantized_weights_are_those_of_the_modules(name: str, format: QuantFormat) -> None:
    model = make_model(ALL[name])
    quantize(model, format)
    set_activations(model, rounded=False)
    random_mixture(Twins(ALL[name], 2, model=model), random.Random(11), texts=3)


@QUANTIZED
@torch.inference_mode()
def test_activations_are_rounded_as_the_modules_round_them(name: str, format: QuantFormat) -> None:
    """A number that lies at the boundary between two codes goes to either, so a few rows may differ by a code."""
    model = make_model(ALL[name])
    quantize(model, format)
    twins, draw = Twins(ALL[name], 2, model=model), torch.Generator().manual_seed(12)
    tables, equal = Tables(twins.pool, None, 13), []
    for sizes in ([3, 9], [1, 1], [1, 6], [1, 1], [2, 20], [1, 1]):
        chunks = [tables.slice(i, size) for i, size in enumerate(sizes)]
        tokens = torch.randint(0, model.spec.vocab_size, (sum(sizes),), generator=draw)
        twins.share_cache()
        expected = model(tokens[None], cache=PagedStep(twins.pool, chunks)).hidden_BTD[0]
        got = twins.native.step(tokens.tolist(), chunks).hidden_ND
        equal += (got - expected).abs().amax(1).lt(1e-4).tolist()
        assert float((got - expected).abs().mean()) < 0.01
    assert sum(equal) > 0.8 * len(equal)
