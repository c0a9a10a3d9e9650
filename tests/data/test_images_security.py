"""Images of strangers: bounded before they are decoded, and every failure is one of our errors."""

from __future__ import annotations

import io
import struct
import time
import zlib

import pytest
from PIL import Image

from fathom.data.images import FORMATS, MAX_PIXELS, open_image
from fathom.errors import DataError


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG whose header says so many pixels, with little data behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    data = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + data


def with_scans(count: int, size: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated: a kilobyte each time, and a pass over all pixels."""
    data = saved(Image.new("RGB", (size, size)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + data[-2:]


def refused(data: bytes) -> str:
    """Open a file and return the error; warnings are errors in all tests, so that none may escape."""
    begin = time.process_time()
    with pytest.raises(DataError) as caught:
        open_image(data)
    assert time.process_time() - begin < 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("width", "height"),
    [(2**31 - 1, 2**31 - 1), (100_000, 100_000), (10_000, 6_000), (1, 10**6), (10**6, 1), (0, 5), (5, 0), (0, 0)],
)
def test_absurd_dimensions_are_refused_before_decoding(width: int, height: int) -> None:
    assert "image: " in refused(png(width, height))


def test_a_jpeg_of_a_thousand_scans_is_refused_at_once() -> None:
    assert "1010 scans" in refused(with_scans(1000, 256))
    assert "scans" in refused(with_scans(100, 3000))
    again = saved(Image.new("RGB", (256, 256)), "JPEG", progressive=False)  # the remedy
    assert open_image(again).size == (256, 256)


def test_honest_progressive_images_are_read() -> None:
    assert open_image(with_scans(0, 2000)).size == (2000, 2000)


def test_compressed_text_and_profiles_are_not_expanded() -> None:
    bomb = zlib.compress(b"\0" * 200_000_000, 9)
    for chunk in ((b"zTXt", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb)):
        refused(png(64, 64, chunk))


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "PCX", "ICNS", "TGA", "EPS", "PDF", "SGI"])
def test_other_decoders_are_not_asked(kind: str) -> None:
    data = saved(Image.new("RGB", (64, 64)), kind)
    assert "give one of PNG, JPEG" in refused(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_files_cut_short_are_refused_and_whole_ones_read(kind: str) -> None:
    data = saved(Image.effect_noise((64, 48), 90).convert("RGB"), kind)
    assert open_image(data).size == (64, 48)
    for length in (1, 10, 30, len(data) // 2):
        refused(data[:length])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "I;16"])
def test_every_kind_of_pixel_becomes_rgb(mode: str) -> None:
    assert open_image(saved(Image.new(mode, (8, 6)), "PNG")).mode == "RGB"


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in range(200)]
    for kind in ("GIF", "WEBP", "PNG"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert open_image(data).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"\0" * 60_000, b"Exif\0\0"]
)
def test_malformed_exif_is_passed_over(exif: bytes) -> None:
    assert open_image(saved(Image.new("RGB", (8, 6)), "JPEG", exif=exif)).size == (8, 6)


def test_the_limit_is_above_what_cameras_take() -> None:
    assert MAX_PIXELS > 8064 * 6048
