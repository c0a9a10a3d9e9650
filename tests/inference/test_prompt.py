"""A conversation with images, from files on disk to an answer, against transformers on the same directory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fathom
from fathom.checkpoint.hf import save_hf
from fathom.errors import CheckpointError, DataError
from fathom.inference.prompt import FeatureCache
from fathom.model.build import build
from fathom.spec import GroupedQueryAttention, ModelSpec, SamplingParams
from fathom.spec.images import ImageProcessing, Normalization, processing_to_hf
from fathom.spec.vision import SamSpec, SiglipSpec, VisionSpec
from fathom.tokenizer import Tokenizer, train_bpe

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image_placeholder>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
LOW = SiglipSpec(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8
)
HIGH = SamSpec(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    mlp_dim=24,
    image_size=64,
    patch_size=8,
    window_size=3,
    global_attn_indexes=(1,),
    output_channels=8,
)
PROCESSING = ImageProcessing(low=Normalization(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)))


def make_tokenizer() -> Tokenizer:
    plain = train_bpe(["What do you see in this picture? A dog, a cat, a house.\n" * 8], vocab_size=400)
    return Tokenizer(plain.tokenizer_json, {"chat_template": TEMPLATE})


@pytest.fixture(scope="module", params=["one tower", "two towers"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vl")
    tokenizer, high = make_tokenizer(), HIGH if request.param == "two towers" else None
    tokenizer.save(folder / "tokenizer")
    image_id = tokenizer.special_tokens["<image_placeholder>"]
    vision = VisionSpec(low=LOW, high=high, image_token_id=image_id, connector="hybrid" if high else "mlp")
    spec = ModelSpec(
        name="tiny-vl",
        family="deepseek_vl_hybrid" if high else "deepseek_vl",
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        attention=GroupedQueryAttention(num_heads=2, num_kv_heads=2, head_dim=16),
        max_position_embeddings=256,
        intermediate_size=48,
        initializer_range=0.3,
        vision=vision,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )
    out = save_hf(folder / "model", spec, build(spec, seed=4).state_dict(), tokenizer=folder / "tokenizer")
    (out / "preprocessor_config.json").write_text(json.dumps(processing_to_hf(PROCESSING, vision)))
    rng = np.random.default_rng(3)
    for name, size in (("a.png", (50, 30)), ("b.png", (30, 64))):
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(folder / name)
    return out


def messages(directory: Path) -> list[dict[str, object]]:
    pictures = [{"type": "image", "image": directory.parent / name} for name in ("a.png", "b.png")]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": "What do you see?"}]}]


def test_images_on_disk_give_the_answer_transformers_gives(directory: Path) -> None:
    from transformers import AutoModelForImageTextToText
    from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil
    from transformers.models.deepseek_vl_hybrid.image_processing_pil_deepseek_vl_hybrid import (
        DeepseekVLHybridImageProcessorPil,
    )

    ours = fathom.load(directory)
    prompt = ours.prompt(messages(directory))
    vision = ours.spec.vision
    assert vision is not None
    assert prompt.token_ids.count(vision.image_token_id) == 2 * vision.tokens_per_image
    kind = DeepseekVLImageProcessorPil if vision.high is None else DeepseekVLHybridImageProcessorPil
    pixels = kind.from_pretrained(directory)(
        images=[Image.open(directory.parent / name) for name in ("a.png", "b.png")], return_tensors="pt"
    )
    theirs = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.tensor([prompt.token_ids])
    expected = theirs.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), **pixels, max_new_tokens=12, do_sample=False
    )[0, ids.shape[1] :].tolist()
    found = ours.generate(prompt, SamplingParams(max_tokens=12, temperature=0.0))
    assert found == expected[: len(found)]
    assert len(found) == 12 or expected[len(found)] == ours.tokenizer.eos_id


@pytest.mark.slow
def test_the_command_line_shows_images(directory: Path) -> None:
    picture = directory.parent / "a.png"
    verb = ["chat", str(directory), "--max-tokens", "6", "--seed", "1"]
    command = [sys.executable, "-c", "from fathom.cli.main import main; main()", *verb]
    with_image = subprocess.run(
        [*command, "--image", str(picture)], input="What is it?\n", capture_output=True, text=True, check=False
    )
    by_line = subprocess.run(
        command, input=f"/image {picture}\nWhat is it?\n", capture_output=True, text=True, check=False
    )
    without = subprocess.run(command, input="What is it?\n", capture_output=True, text=True, check=False)
    assert with_image.returncode == by_line.returncode == without.returncode == 0, with_image.stderr
    assert with_image.stdout == by_line.stdout != without.stdout
    missing = subprocess.run(
        [*command, "--image", "nowhere.png"], input="What is it?\n", capture_output=True, text=True, check=False
    )
    assert missing.returncode == 2
    assert "nowhere.png: cannot be opened" in missing.stderr


def test_bad_images_and_settings_are_named(directory: Path) -> None:
    ours = fathom.load(directory)
    with pytest.raises(DataError, match="an image part holds no picture"):
        ours.prompt([{"role": "user", "content": [{"type": "image"}]}])
    settings = directory / "preprocessor_config.json"
    before = settings.read_text()
    try:
        settings.write_text('{"size": {"height": 7, "width": 7}}')
        with pytest.raises(
            CheckpointError, match=r"preprocessor_config.json: size: .* is not the tower's image size 32"
        ):
            fathom.load(directory)
        settings.write_text("{")
        with pytest.raises(CheckpointError, match="cannot be read"):
            fathom.load(directory)
    finally:
        settings.write_text(before)


def test_images_of_earlier_turns_are_not_read_again() -> None:
    cache, computed = FeatureCache(max_images=2), []

    def compute(image: Image.Image) -> torch.Tensor:
        computed.append(image.size)
        return torch.full((1, 2), float(image.width))

    images = [Image.new("RGB", (width, 2)) for width in (1, 2, 3)]
    for index in (0, 1, 0, 0, 2, 0, 1):
        assert cache.features(images[index].copy(), compute)[0, 0] == index + 1
    assert [width for width, _ in computed] == [1, 2, 3, 2]
