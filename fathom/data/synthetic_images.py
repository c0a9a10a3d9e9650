"""Pictures of one coloured shape with a sentence about it: image-text pairs that need no download."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from fathom.errors import DataError
from fathom.extras import install_extra
from fathom.files import publish_directory
from fathom.progress import NULL_PROGRESS, Progress

if TYPE_CHECKING:
    from PIL.Image import Image

PAIR_FILES = MappingProxyType({"train": "train.jsonl", "held_out": "held_out.jsonl"})
"""The file of pairs of each split, inside the folder ``write_synthetic_images`` makes."""

COLOURS = MappingProxyType(
    {
        "red": (214, 40, 40),
        "green": (46, 150, 70),
        "blue": (40, 84, 200),
        "yellow": (240, 200, 30),
        "black": (20, 20, 20),
        "purple": (130, 50, 160),
    }
)
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = MappingProxyType({"small": 0.13, "large": 0.23})
PLACES = MappingProxyType(
    {"top left": (0.3, 0.3), "top right": (0.7, 0.3), "bottom left": (0.3, 0.7), "bottom right": (0.7, 0.7)}
)


@dataclass(frozen=True, slots=True)
class Scene:
    """The shape, colour and place of a picture."""

    size: str
    colour: str
    shape: str
    place: str

    @property
    def sentence(self) -> str:
        """The caption."""
        return f" A {self.size} {self.colour} {self.shape} at the {self.place}."


SCENES = tuple(Scene(*words) for words in itertools.product(SIZES, COLOURS, SHAPES, PLACES))
"""Every scene there is; two pictures of one scene differ in shade, place and size by a little."""


def write_synthetic_images(
    directory: Path, *, count: int, held_out: int, size: int, seed: int, progress: Progress = NULL_PROGRESS
) -> None:
    """Draw both splits into ``directory``, which appears when all are done: PNG files and a JSONL of pairs for each."""
    with publish_directory(directory) as temporary:
        done = 0
        for split, number in (("train", count), ("held_out", held_out)):
            (temporary / split).mkdir()
            with (temporary / PAIR_FILES[split]).open("w", encoding="utf-8") as lines:
                for index, (scene, picture) in enumerate(_pictures(split, number, size, seed)):
                    name = f"{split}/{index:05d}.png"
                    picture.save(temporary / name)
                    lines.write(json.dumps({"image": name, "text": scene.sentence}) + "\n")
                    done += 1
                    if done % 100 == 0 or done == count + held_out:
                        progress.update(done, count + held_out, "pictures", phase="draw")


def _pictures(split: str, number: int, size: int, seed: int) -> Iterator[tuple[Scene, Image]]:
    rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, int(split == "train")]))
    for _ in range(number):
        scene = SCENES[int(rng.integers(len(SCENES)))]
        yield scene, _drawn(scene, size, rng)


def _drawn(scene: Scene, size: int, rng: np.random.Generator) -> Image:
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        raise DataError(f"pictures need Pillow, which is not installed; {install_extra('images')}") from None
    shade = rng.integers(-18, 19, 3)
    red, green, blue = (int(np.clip(c + s, 0, 255)) for c, s in zip(COLOURS[scene.colour], shade, strict=True))
    ground = int(rng.integers(215, 256))
    image = Image.new("RGB", (size, size), (ground, ground, ground))
    x, y = (at * size + rng.uniform(-0.06, 0.06) * size for at in PLACES[scene.place])
    half = SIZES[scene.size] * size * rng.uniform(0.9, 1.1)
    draw, fill = ImageDraw.Draw(image), (red, green, blue)
    if scene.shape == "circle":
        draw.ellipse((x - half, y - half, x + half, y + half), fill)
    elif scene.shape == "square":
        draw.rectangle((x - half, y - half, x + half, y + half), fill)
    elif scene.shape == "triangle":
        draw.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill)
    else:
        draw.rectangle((x - half, y - half / 3, x + half, y + half / 3), fill)
        draw.rectangle((x - half / 3, y - half, x + half / 3, y + half), fill)
    return image
