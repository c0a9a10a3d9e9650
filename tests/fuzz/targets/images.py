"""Damaged and hostile image files, in every format that is decoded and some that are not."""

from __future__ import annotations

import io
import random
import warnings

import numpy as np
from PIL import Image

from fathom.data.images import FORMATS, open_image, preprocess
from fathom.spec.vision import SiglipSpec, VisionSpec
from tests.fuzz.driver import Target

_TOWER = SiglipSpec(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
)
VISION = VisionSpec(low=_TOWER, image_token_id=5, connector="mlp")
_MODES = ("RGB", "RGBA", "L", "P", "1", "CMYK", "I;16", "LA")
_SIZES = (0, 1, 2, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes | None:
    """Return a file of an image; None where the format has no such mode."""
    file = io.BytesIO()
    try:
        image.save(file, format=kind, **options)
    except (OSError, ValueError, KeyError):
        return None
    return file.getvalue()


class Images(Target):
    """Whole files, opened and made ready for a tower."""

    name = "images"
    short_executions = 250
    memory_bytes = 1 << 30

    def start(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        exif = Image.Exif()
        exif[274], exif[270] = 6, "text"
        found = [
            encoded(picture.convert(mode), kind, **options)
            for kind in (*FORMATS, "TIFF", "PPM", "PCX", "TGA", "EPS")
            for mode in _MODES
            if mode != "I;16" or kind in ("PNG", "TIFF")
            for options in ({}, {"exif": exif.tobytes()}, {"progressive": True}, {"save_all": True, "lossless": True})
        ]
        frames = [picture.rotate(angle) for angle in range(0, 90, 30)]
        found += [encoded(picture, kind, save_all=True, append_images=frames) for kind in ("GIF", "PNG", "WEBP")]
        self.known = sorted({data for data in found if data is not None})
        for kind in FORMATS:
            self.check(encoded(picture, kind) or b"")  # every decoder is imported before memory is limited

    def make(self, rng: random.Random) -> bytes:
        data = bytearray(rng.choice(self.known))
        for _ in range(rng.choice((1, 1, 2, 4, 8))):
            place = min(int(rng.expovariate(0.01)), len(data) - 1) if rng.random() < 0.6 else rng.randrange(len(data))
            match rng.randrange(6):
                case 0:
                    data[place] = rng.randrange(256)
                case 1:
                    data[place] ^= 1 << rng.randrange(8)
                case 2:
                    data[place : place + 4] = rng.choice(_SIZES).to_bytes(4, rng.choice(("big", "little")))
                case 3:
                    del data[place : place + rng.choice((1, 4, 60))]
                case 4:
                    data[place:place] = data[place : place + rng.choice((8, 100, 2000))] * rng.choice((1, 3, 50))
                case _:
                    del data[max(place, 1) :]
            if not data:
                return b"\0"
        return bytes(data)

    def check(self, data: bytes) -> None:
        with self.tolerated(), warnings.catch_warnings():
            warnings.simplefilter("error")
            image = open_image(data)
            assert image.mode == "RGB"
            assert preprocess([image], VISION).low_IAXY.shape == (1, 3, 32, 32)


TARGETS = (Images,)
