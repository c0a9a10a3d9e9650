"""Opening and preprocessing images, against transformers' image processors."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fathom.data.images import open_image, preprocess
from fathom.errors import DataError, SpecError
from fathom.spec.images import ImageProcessing, Normalization, processing_from_hf, processing_to_hf
from fathom.spec.vision import SamSpec, SiglipSpec, VisionSpec

LOW = SiglipSpec(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=48, patch_size=16
)
HIGH = SamSpec(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    mlp_dim=16,
    image_size=96,
    patch_size=16,
    window_size=3,
    global_attn_indexes=(0,),
    output_channels=8,
)
ONE = VisionSpec(low=LOW, image_token_id=5, connector="mlp")
TWO = VisionSpec(low=LOW, high=HIGH, image_token_id=5, connector="hybrid")
SHAPES = [(70, 40), (33, 80), (64, 64), (500, 9), (20, 20)]


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height))
    return Image.fromarray((np.asarray(smooth) // 2 + rng.integers(0, 128, (height, width, 3))).astype(np.uint8))


@pytest.mark.parametrize("size", SHAPES)
def test_one_tower_gets_what_transformers_gives(size: tuple[int, int]) -> None:
    from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil

    processing = ImageProcessing(low=Normalization(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)))
    theirs = DeepseekVLImageProcessorPil(
        size={"height": 48, "width": 48}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25]
    )
    expected = theirs(images=[picture(*size)], return_tensors="pt")["pixel_values"]
    found = preprocess([picture(*size)], ONE, processing)
    assert found.high_IAXY is None
    torch.testing.assert_close(found.low_IAXY, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SHAPES)
def test_two_towers_get_what_transformers_gives(size: tuple[int, int]) -> None:
    from transformers.models.deepseek_vl_hybrid.image_processing_pil_deepseek_vl_hybrid import (
        DeepseekVLHybridImageProcessorPil,
    )

    theirs = DeepseekVLHybridImageProcessorPil(
        size={"height": 48, "width": 48},
        high_res_size={"height": 96, "width": 96},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    expected = theirs(images=[picture(*size)], return_tensors="pt")
    found = preprocess([picture(*size)], TWO)
    assert found.high_IAXY is not None
    torch.testing.assert_close(found.low_IAXY, expected["pixel_values"], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.high_IAXY, expected["high_res_pixel_values"], rtol=0, atol=1e-6)


def test_the_batch_fits_the_towers() -> None:
    preprocess([picture(30, 60), picture(60, 30)], TWO).check(TWO)


def test_processing_is_read_back_as_written_and_refused_for_other_towers() -> None:
    processing = ImageProcessing(low=Normalization(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)), min_size=3)
    written = processing_to_hf(processing, TWO)
    assert processing_from_hf(written, TWO) == processing
    assert processing_from_hf({"image_processor": written}, TWO) == processing
    assert processing_from_hf({}, TWO) == ImageProcessing()
    with pytest.raises(SpecError, match="high_res_size"):
        processing_from_hf(written | {"high_res_size": {"height": 1024, "width": 1024}}, TWO)
    with pytest.raises(SpecError, match="do_normalize"):
        processing_from_hf(written | {"do_normalize": False}, TWO)
    with pytest.raises(SpecError, match="image_std"):
        processing_from_hf(written | {"image_std": [1.0]}, TWO)


def test_transformers_reads_the_processing_that_is_written(tmp_path: Path) -> None:
    import json

    from transformers.models.deepseek_vl_hybrid.image_processing_pil_deepseek_vl_hybrid import (
        DeepseekVLHybridImageProcessorPil,
    )

    written = processing_to_hf(ImageProcessing(), TWO)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    theirs = DeepseekVLHybridImageProcessorPil.from_pretrained(tmp_path)
    expected = theirs(images=[picture(70, 40)], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(preprocess([picture(70, 40)], TWO).low_IAXY, expected, rtol=0, atol=1e-6)


def test_a_file_bytes_and_a_data_uri_are_the_same_image(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture(20, 10).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    opened = [np.asarray(open_image(source)) for source in (tmp_path / "a.png", buffer.getvalue(), uri)]
    assert all(np.array_equal(image, np.asarray(picture(20, 10))) for image in opened)


def test_a_turned_photograph_is_turned_back(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(20, 10).save(tmp_path / "turned.png", exif=exif)
    assert open_image(tmp_path / "turned.png").size == (10, 20)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"not an image", "no image of a known format"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, "a.png|cannot|no image"),
        ("nowhere.png", "check the path"),
        ("data:image/png,abc", "not base64"),
        ("data:image/png;base64,!!!", "malformed"),
    ],
)
def test_what_is_no_image_is_refused(source: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_image(source)


def test_images_cut_short_or_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    picture(60, 60).save(buffer, "PNG")
    with pytest.raises(DataError, match="cannot be decoded"):
        open_image(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    monkeypatch.setattr("fathom.data.images.MAX_PIXELS", 1000)
    with pytest.raises(DataError, match="60 x 60"):
        open_image(buffer.getvalue())
    monkeypatch.setattr("fathom.data.images.MAX_BYTES", 100)
    with pytest.raises(DataError, match="larger than"):
        open_image(buffer.getvalue())
    with pytest.raises(DataError, match="none given"):
        preprocess([], ONE)
