"""Messages of text and images, in templates that read parts and in templates that read text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from fathom.chat import encode_chat, render
from fathom.errors import DataError
from fathom.tokenizer import Tokenizer, special

IMAGE = special.IMAGE
PARTS_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image_placeholder>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
SEEN = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
    {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "image"}, {"type": "image"}]},
]


@pytest.fixture(scope="module")
def seeing(tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer(tokenizer.tokenizer_json, dict(tokenizer.config) | {"chat_template": PARTS_TEMPLATE})


def test_a_template_of_parts_gives_transformers_ids(seeing: Tokenizer, tmp_path: Path) -> None:
    seeing.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(SEEN, add_generation_prompt=True, return_dict=False)
    image = seeing.special_tokens[IMAGE]
    assert encode_chat(seeing, SEEN, image_token_id=image) == list(expected)


def test_each_image_becomes_its_tokens_in_order(seeing: Tokenizer) -> None:
    image = seeing.special_tokens[IMAGE]
    once = encode_chat(seeing, SEEN, image_token_id=image)
    several = encode_chat(seeing, SEEN, image_token_id=image, tokens_per_image=3)
    assert once.count(image) == 3
    assert several == [token for id_ in once for token in [id_] * (3 if id_ == image else 1)]


def test_a_template_of_text_gets_the_images_spelled(seeing: Tokenizer) -> None:
    image = seeing.special_tokens[IMAGE]
    plain = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    ids = encode_chat(seeing, SEEN, plain, image_token_id=image)
    assert seeing.decode(ids, skip_special=False) == f"{IMAGE}What is this?\nA dog.\nAnd{IMAGE}{IMAGE}\n"


def test_text_that_spells_an_image_is_text(seeing: Tokenizer) -> None:
    image = seeing.special_tokens[IMAGE]
    messages = [{"role": "user", "content": [{"type": "text", "text": IMAGE}, {"type": "image"}]}]
    assert encode_chat(seeing, messages, image_token_id=image).count(image) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"type": "video"}], r"content\[0\].type: 'video'"),
        ([{"type": "text"}], r"content\[0\].text: expected text, got NoneType"),
        (["hello"], r"content\[0\].type"),
    ],
)
def test_bad_parts_name_the_field(seeing: Tokenizer, content: list[object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        encode_chat(seeing, [{"role": "user", "content": content}])


def test_images_without_an_image_token_are_refused(seeing: Tokenizer) -> None:
    with pytest.raises(DataError, match="no image token"):
        encode_chat(seeing, SEEN, "{% for message in messages %}{{ message['content'] }}{% endfor %}")
    with pytest.raises(DataError, match="hold 3 images, but the chat template places 0"):
        encode_chat(seeing, SEEN, "{% for m in messages %}{{ m['content'][0]['type'] }}{% endfor %}", image_token_id=3)


CALLS = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{% set given = c.function.arguments %}"
    "{{ BODY }}{% endfor %}{{ m.content or '' }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("body", "given", "shown"),
    [
        ("c.function.name ~ (given|tojson)", '{"a":1}', '{"a": 1}'),  # tojson would quote text
        ("c.function.name ~ (given is mapping)", '{"a":1}', "True"),
        ("c.function.name ~ (given.items()|list)", '{"a":1}', "[('a', 1)]"),
        ("c.function.name ~ (given.items()|list)", "", "[]"),
        ("c.function.name + given", '{"a":1}', '{"a":1}'),
        ("c.function.name + given", {"a": "ü"}, '{"a": "ü"}'),
        ("c.function.name ~ given", '{"a":1}', '{"a":1}'),  # its mapping would be Python's repr
        ("c.function.name ~ (given if given is string else given|tojson)", '{"a":1}', '{"a":1}'),
    ],
)
def test_arguments_are_a_mapping_unless_the_template_needs_or_copies_text(body: str, given: Any, shown: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": given}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    template = CALLS.replace("BODY", body)
    assert render(messages, template) == f"xf{shown}"
