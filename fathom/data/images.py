"""Images: opened within limits, and made into what the vision towers take.

A colours, X rows and Y columns of pixels.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fathom.errors import DataError, explain_os_error, reason_of
from fathom.extras import install_extra
from fathom.files import open_regular
from fathom.model.vision import ImageBatch
from fathom.spec.images import ImageProcessing, Normalization
from fathom.spec.vision import VisionSpec

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 64 << 20
MAX_PIXELS = 50_000_000
"""Decoding takes up to 8 bytes for each, and some 20 ns."""
MAX_ASPECT = 200
MAX_SCANNED_PIXELS = 16 * MAX_PIXELS
MAX_SCANS = 200
"""A progressive JPEG is decoded once for each of its scans, of which honest ones have about ten."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What is decoded, of animations the first frame. Other decoders are many, old and seldom looked at."""
_START_OF_SCAN = b"\xff\xda"


def open_image(source: str | Path | bytes) -> Image:
    """Open an image file, a ``data:`` URI or an image file's bytes, as RGB, turned the way its EXIF data says.

    Raises:
        DataError: no such file, no image of a known format, or beyond ``MAX_BYTES``, ``MAX_PIXELS`` or ``MAX_ASPECT``.
    """
    name, content = _content(source)
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise DataError(f"images need Pillow, which is not installed; {install_extra('images')}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            _check_size(name, image, content)
            ImageOps.exif_transpose(image, in_place=True)
            return image.convert("RGB")
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: is no image of a known format; give one of {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise DataError(f"{name}: cannot be decoded ({reason_of(error)}); save the image anew") from None


def _check_size(name: str, image: Image, content: bytes) -> None:
    """Refuse what would take much memory or time, before any of it is decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(
            f"{name}: {width} x {height} pixels; give at most {MAX_PIXELS // 1_000_000} million, "
            f"no side more than {MAX_ASPECT} times the other"
        )
    scans = content.count(_START_OF_SCAN) if image.format == "JPEG" else 1
    if scans > MAX_SCANS or scans * width * height > MAX_SCANNED_PIXELS:
        raise DataError(
            f"{name}: a JPEG of {width} x {height} pixels in {scans} scans; save it without progressive encoding"
        )


def preprocess(images: Sequence[Image], vision: VisionSpec, processing: ImageProcessing | None = None) -> ImageBatch:
    """Resize, pad and normalise images for the towers of ``vision`` (DeepSeek-VL §3.1); at least one is needed."""
    if not images:
        raise DataError("images: none given; give at least one")
    steps = ImageProcessing() if processing is None else processing
    low: list[Tensor] = []
    high: list[Tensor] = []
    for image in images:
        if vision.high is not None:
            image = _square(image, vision.high.image_size, steps.min_size, steps.high)
            high.append(_normalised(image, steps.high))
        low.append(_normalised(_square(image, vision.low.image_size, steps.min_size, steps.low), steps.low))
    return ImageBatch(torch.stack(low), torch.stack(high) if high else None)


def _content(source: str | Path | bytes) -> tuple[str, bytes]:
    """Return what to call an image and the bytes of its file."""
    name, content = "image", b""
    if isinstance(source, bytes):
        content = source
    elif isinstance(source, str) and source.startswith("data:"):
        header, _, body = source.partition(",")
        if not header.endswith(";base64"):
            raise DataError(f"image: {header[:40]!r} is not base64; give data:image/png;base64,...")
        try:
            content = base64.b64decode(body[: MAX_BYTES * 4 // 3 + 8], validate=True)
        except binascii.Error as error:
            raise DataError(f"image: its base64 is malformed ({error}); encode the file again") from None
    else:
        path = Path(source)
        name = str(path)
        try:
            with open_regular(path) as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise DataError(f"{path}: cannot be opened, {explain_os_error(error)}") from None
        except ValueError as error:  # a zero byte, or half a character
            raise DataError(f"image: {name!r} is no path ({reason_of(error)}); correct it") from None
    if len(content) > MAX_BYTES:
        raise DataError(f"{name}: is larger than {MAX_BYTES >> 20} MiB; give a smaller file")
    return name, content


def _square(image: Image, size: int, min_size: int, normalization: Normalization) -> Image:
    """Resize the longer side to ``size`` and pad to a square with the mean colour, the image in the middle."""
    from PIL import Image as images

    scale = size / max(image.size)
    width, height = (max(round(side * scale), min_size) for side in image.size)
    resized = image.resize((width, height), images.Resampling.BICUBIC)
    side = max(width, height)
    if width == height:
        return resized
    padded = images.new("RGB", (side, side), normalization.background)
    padded.paste(resized, ((side - width) // 2, (side - height) // 2))
    return padded


def _normalised(image: Image, normalization: Normalization) -> Tensor:
    """Return float32 (A, X, Y)."""
    pixels_XYA = torch.from_numpy(np.asarray(image, dtype=np.float32) * np.float32(1 / 255))
    return ((pixels_XYA - torch.tensor(normalization.mean)) / torch.tensor(normalization.std)).permute(2, 0, 1)
