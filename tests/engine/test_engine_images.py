"""Prompts with images: whatever the batch and the chunks, as if each were read whole and alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fathom.engine.engine import Engine
from fathom.engine.request import Output, Request
from fathom.errors import SpecError
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.model.vision import ImageBatch
from fathom.spec import GroupedQueryAttention, ModelSpec, SamplingParams
from fathom.spec.engine import EngineSpec
from fathom.spec.vision import SiglipSpec, VisionSpec
from tests.engine.reference import alone, ids

IMAGE = 7
PER_IMAGE = 4
GREEDY = SamplingParams(max_tokens=5, temperature=0.0)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    low = SiglipSpec(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    return build(
        ModelSpec(
            name="tiny-vl",
            family="deepseek_vl",
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            attention=GroupedQueryAttention(num_heads=2, num_kv_heads=2, head_dim=8),
            max_position_embeddings=48,
            intermediate_size=24,
            initializer_range=0.4,
            vision=VisionSpec(low=low, image_token_id=IMAGE, connector="mlp"),
        ),
        seed=5,
    ).eval()


def features(decoder: Decoder, count: int, seed: int) -> Tensor:
    assert decoder.vision is not None
    pixels = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return decoder.vision(ImageBatch(pixels)).flatten(0, 1)


def oracle(decoder: Decoder, prompt: list[int], features_ND: Tensor | None) -> list[int]:
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(GREEDY.max_tokens):
            hidden = decoder(torch.tensor([tokens]), features_ND=features_ND).hidden_BTD
            tokens.append(int(decoder.logits(hidden[0, -1]).argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize(("max_batch", "step_tokens"), [(1, 512), (3, 3), (8, 512)])
def test_images_survive_batches_and_chunks(decoder: Decoder, max_batch: int, step_tokens: int) -> None:
    one, two = [1, *[IMAGE] * PER_IMAGE, 2], [3, *[IMAGE] * PER_IMAGE, 4, *[IMAGE] * PER_IMAGE]
    prompts = [one, [5, *one[1:]], two, [1, 2, 3, 4, 5, 6], [9]]
    given = [features(decoder, 1, 1), features(decoder, 1, 2), features(decoder, 2, 3), None, None]
    completions = Engine(decoder, spec=EngineSpec(max_batch=max_batch, step_tokens=step_tokens, page_size=4)).sample(
        prompts, GREEDY, features=given
    )
    for prompt, features_ND, completion in zip(prompts, given, completions, strict=True):
        assert list(completion.token_ids) == oracle(decoder, prompt, features_ND)


def test_another_image_gives_another_answer(decoder: Decoder) -> None:
    prompt = [1, *[IMAGE] * PER_IMAGE, 2]
    engine = Engine(decoder)
    answers = {tuple(engine.stream(prompt, GREEDY, features_ND=features(decoder, 1, seed))) for seed in range(6)}
    assert len(answers) > 1


def test_images_without_tokens_and_tokens_without_images_are_refused(decoder: Decoder) -> None:
    engine = Engine(decoder)
    with pytest.raises(SpecError, match="0 rows for 4 image tokens"):
        engine.sample([[1, *[IMAGE] * PER_IMAGE]], GREEDY)
    with pytest.raises(SpecError, match="4 rows for 0 image tokens"):
        engine.stream([1, 2], GREEDY, features_ND=features(decoder, 1, 1))
    with pytest.raises(SpecError, match="features: 1 for 2 prompts"):
        engine.sample([[1], [2]], GREEDY, features=[None])


def test_images_survive_being_cached_and_put_back_and_others_drawing_their_token(decoder: Decoder) -> None:
    engine = Engine(decoder, spec=EngineSpec(page_size=4, cache_tokens=48, max_batch=3, step_tokens=8))
    drawing = SamplingParams(max_tokens=16, temperature=0.0, logit_bias=((IMAGE, 1e3),))
    first = Request(prompt=(1, 2, 3), params=drawing, priority=1)
    prompt = (5, *[IMAGE] * PER_IMAGE, 4, *[IMAGE] * PER_IMAGE, 6, 9, 8)
    seen = [features(decoder, 2, seed) for seed in (3, 4, 3)]
    name = engine.submit(first)
    engine.step()
    outputs: dict[int, list[Output]] = {}
    for features_ND in seen:
        engine.submit(Request(prompt=prompt, params=GREEDY, features_ND=features_ND))
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    for number, features_ND in enumerate(seen, start=1):
        assert ids(outputs[name + number]) == oracle(decoder, list(prompt), features_ND)
    expected = alone(decoder, first)
    assert [token.token_id for token in expected] == [IMAGE] * 16
    got = [token.logprob for output in outputs[name] for token in output.tokens]
    assert got == pytest.approx([token.logprob for token in expected[1:]], abs=1e-4)
    assert [outputs[name + number][-1].cached_tokens for number in (1, 2, 3)] == [0, 0, 12]
