"""Image-text pairs: rows, masks, order, mixture with text, and resuming."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fathom.data.image_text import ImageTextFile, ImageTextLoader
from fathom.data.images import open_image, preprocess
from fathom.data.synthetic_images import SCENES, write_synthetic_images
from fathom.errors import DataError
from fathom.spec.targets import IGNORE_INDEX
from fathom.spec.vision import SiglipSpec, VisionSpec
from fathom.tokenizer import Tokenizer, special, train_bpe

LENGTH = 24


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["A small red circle at the top left. What is it?\n" * 8], vocab_size=340)


@pytest.fixture(scope="module")
def vision(tokenizer: Tokenizer) -> VisionSpec:
    low = SiglipSpec(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    return VisionSpec(low=low, image_token_id=tokenizer.special_tokens[special.IMAGE], connector="mlp")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = []
    for index in range(5):
        Image.fromarray(np.full((6, 6, 3), 40 * index, dtype=np.uint8)).save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png", "text": f" {index} is red", "prompt": " What?" if index % 2 else ""})
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path


def loader(path: Path, tokenizer: Tokenizer, vision: VisionSpec, **settings: int) -> ImageTextLoader:
    return ImageTextLoader(
        ImageTextFile.open(path),
        None,
        tokenizer=tokenizer,
        vision=vision,
        sequence_length=LENGTH,
        **{"seed": 3} | settings,
    )


def test_a_row_is_image_prompt_text_and_end_and_only_the_text_is_learned(
    pairs: Path, tokenizer: Tokenizer, vision: VisionSpec
) -> None:
    batch = loader(pairs, tokenizer, vision).next(5)
    assert batch.images is not None
    assert batch.targets_BT is not None
    seen = set()
    for row, targets, pixels in zip(batch.tokens_BT1, batch.targets_BT, batch.images.low_IAXY, strict=True):
        ids = [i for i in row.tolist() if i != tokenizer.pad_id]
        text = tokenizer.decode([i for i in targets.tolist() if i != IGNORE_INDEX and i != tokenizer.eos_id])
        index = int(text.split()[0])
        prompt = tokenizer.encode(" What?") if index % 2 else []
        head = [*tokenizer.prefix_ids, *[vision.image_token_id] * 4, *prompt]
        answer = [*tokenizer.encode(f" {index} is red"), tokenizer.eos_id]
        assert ids == head + answer
        learned = [int(t) for t in targets if t != IGNORE_INDEX]
        assert learned == answer
        assert [int(row[1 + i]) for i in range(LENGTH) if targets[i] != IGNORE_INDEX] == answer
        expected = preprocess([open_image(pairs.parent / f"{index}.png")], vision).low_IAXY[0]
        assert torch.equal(pixels, expected)
        seen.add(index)
    assert seen == set(range(5))


def test_resuming_gives_the_same_batches(pairs: Path, tokenizer: Tokenizer, vision: VisionSpec) -> None:
    one, two = (loader(pairs, tokenizer, vision) for _ in range(2))
    for _ in range(3):
        one.next(3)
    two.restore(json.loads(json.dumps(one.state())))
    for _ in range(4):
        a, b = one.next(3), two.next(3)
        assert torch.equal(a.tokens_BT1, b.tokens_BT1)
        assert a.images is not None
        assert b.images is not None
        assert torch.equal(a.images.low_IAXY, b.images.low_IAXY)
    with pytest.raises(DataError, match="other pairs or settings"):
        loader(pairs, tokenizer, vision, seed=4).restore(one.state())


class Text:
    """Stands for a packed loader: what the mixture asks of it."""

    sources = ("a", "b")
    bytes_per_token = {"a": 1.0, "b": 2.0}  # noqa: RUF012

    def __init__(self) -> None:
        self.batches = 0

    def next(self, batch_size: int) -> object:
        self.batches += 1
        return None

    def state(self) -> dict[str, int]:
        return {"batches": self.batches}

    def restore(self, state: dict[str, int]) -> None:
        self.batches = state["batches"]


def test_batches_hold_pairs_or_text_in_the_share_asked_for_after_a_rise(
    pairs: Path, tokenizer: Tokenizer, vision: VisionSpec
) -> None:
    text = Text()
    mixed = ImageTextLoader(
        ImageTextFile.open(pairs),
        text,  # type: ignore[arg-type]
        tokenizer=tokenizer,
        vision=vision,
        sequence_length=LENGTH,
        seed=1,
        fraction=0.3,
        warmup_tokens=400 * LENGTH,
    )
    kinds = [mixed.next(1) is not None for _ in range(1200)]
    assert kinds.count(False) == text.batches
    assert 0.24 < sum(kinds[400:]) / 800 < 0.36
    assert 0.08 < sum(kinds[:400]) / 400 < 0.22
    assert sum(kinds[:50]) < sum(kinds[350:400]) + 8


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1: is no JSON"),
        ('{"image": "a.png"}', "line 1: text is ''"),
        ('{"image": 3, "text": "x"}', "line 1: image is 3"),
        ("[]", "line 1: image is ''"),
        ("", "holds no pairs"),
    ],
)
def test_bad_files_name_the_line(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(line)
    with pytest.raises(DataError, match=words):
        ImageTextFile.open(tmp_path / "pairs.jsonl")
    with pytest.raises(DataError, match="check the path"):
        ImageTextFile.open(tmp_path / "nowhere.jsonl")


def test_settings_that_cannot_be_met_are_refused(pairs: Path, tokenizer: Tokenizer, vision: VisionSpec) -> None:
    with pytest.raises(DataError, match="no text to mix in"):
        loader(pairs, tokenizer, vision, fraction=0.5)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="leaves no text beside an image"):
        ImageTextLoader(ImageTextFile.open(pairs), None, tokenizer=tokenizer, vision=vision, sequence_length=5, seed=1)


def test_pictures_are_drawn_the_same_from_a_seed_and_held_out_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_synthetic_images(tmp_path / name, count=30, held_out=6, size=32, seed=5)
    for file in sorted((tmp_path / "one").rglob("*.*")):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()
    train, held_out = (ImageTextFile.open(tmp_path / "one" / f"{split}.jsonl").pairs for split in ("train", "held_out"))
    assert (len(train), len(held_out)) == (30, 6)
    assert {pair.text for pair in train} <= {scene.sentence for scene in SCENES}
    images = [pair.image.read_bytes() for pair in (*train, *held_out)]
    assert len(set(images)) == len(images)


def test_a_red_picture_is_red(tmp_path: Path) -> None:
    write_synthetic_images(tmp_path / "p", count=60, held_out=1, size=32, seed=2)
    for pair in ImageTextFile.open(tmp_path / "p" / "train.jsonl").pairs:
        pixels = np.asarray(open_image(pair.image)).reshape(-1, 3).astype(int)
        shape = pixels[np.abs(pixels - pixels[0]).sum(1) > 60].mean(0)
        if "red" in pair.text:
            assert shape[0] > shape[1] + 80
            assert shape[0] > shape[2] + 80
