"""Pictures in a conversation: what HTTP brings is what the library sees."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fathom.inference.language_model import LanguageModel
from fathom.model import build
from fathom.spec import GroupedQueryAttention, ModelSpec, SamplingParams
from fathom.spec.vision import SiglipSpec, VisionSpec
from fathom.tokenizer import Tokenizer, train_bpe
from tests.serve.serving import Running, running

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image_placeholder>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}:"
)
LOW = SiglipSpec(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8
)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    plain = train_bpe(["What do you see in this picture? A dog, a cat, a house.\n" * 8], vocab_size=400)
    tokenizer = Tokenizer(plain.tokenizer_json, {"chat_template": TEMPLATE})
    image = tokenizer.special_tokens["<image_placeholder>"]
    spec = ModelSpec(
        name="tiny-vl",
        family="deepseek_vl",
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        attention=GroupedQueryAttention(num_heads=2, num_kv_heads=2, head_dim=16),
        max_position_embeddings=256,
        intermediate_size=48,
        initializer_range=0.3,
        vision=VisionSpec(low=LOW, high=None, image_token_id=image, connector="mlp"),
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )
    model = LanguageModel(build(spec, seed=4), tokenizer, tmp_path_factory.mktemp("vl"), frozenset({tokenizer.eos_id}))
    with running(model) as server:
        yield server


def picture(seed: int) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, format="PNG")
    return content.getvalue()


def conversation(content: bytes) -> list[dict[str, Any]]:
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}}, {"type": "text", "text": "What is it?"}]
    return [{"role": "user", "content": parts}]


def test_every_interface_shows_the_same_picture(seeing: Running) -> None:
    content, question = picture(1), "What is it?"
    data = base64.b64encode(content).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    blocks = [{"type": "image", "source": source}, {"type": "text", "text": question}]
    parts = [
        {"type": "input_image", "image_url": f"data:image/png;base64,{data}", "detail": "auto"},
        {"type": "input_text", "text": question},
    ]
    fields = {"model": "tiny", "temperature": 0}
    with seeing.http() as http:
        chat = http.post(
            "/v1/chat/completions", json={"messages": conversation(content), "max_tokens": 8} | fields
        ).json()
        messages = [{"role": "user", "content": blocks}]
        message = http.post("/v1/messages", json={"messages": messages, "max_tokens": 8} | fields).json()
        items = [{"role": "user", "content": parts}]
        response = http.post("/v1/responses", json={"input": items, "max_output_tokens": 8} | fields).json()
    expected = chat["choices"][0]["message"]["content"]
    assert message["content"][0]["text"] == expected
    assert response["output"][0]["content"][0]["text"] == expected
    assert response["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]


def test_an_answer_about_a_picture_is_the_librarys(seeing: Running) -> None:
    model = seeing.service.model
    answers = []
    for seed in range(2):
        messages = conversation(picture(seed))
        with seeing.http() as http:
            answer = http.post(
                "/v1/chat/completions",
                json={"messages": messages, "max_tokens": 8, "temperature": 0, "logprobs": True, "ignore_eos": True},
            ).json()
        prompt = model.prompt(messages)
        alone = LanguageModel(model.model, model.tokenizer, model.path, model.eos_ids)
        expected = alone.engine.sample(
            [prompt.token_ids],
            SamplingParams(max_tokens=8, temperature=0, ignore_eos=True),
            features=[prompt.features_ND],
        )[0]
        found = [token["logprob"] for token in answer["choices"][0]["logprobs"]["content"]]
        assert found == pytest.approx(expected.logprobs, abs=1e-4)
        assert answer["usage"]["prompt_tokens"] == len(prompt.token_ids)
        answers.append(found)
    assert answers[0] != pytest.approx(answers[1], abs=1e-4)


@pytest.mark.parametrize(
    "url", ["data:image/png;base64,!!!", "data:image/png;base64,aGVsbG8=", "data:text/plain,hello"]
)
def test_what_is_no_picture_is_refused(seeing: Running, url: str) -> None:
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    with seeing.http() as http:
        answer = http.post("/v1/chat/completions", json={"messages": [message]})
    assert answer.status_code == 400, answer.text
    assert "image" in answer.json()["error"]["message"]


def test_a_model_that_sees_nothing_says_so(server: Running) -> None:
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json={"messages": conversation(picture(0))})
    assert answer.status_code == 400
    assert "sees no images" in answer.json()["error"]["message"]
