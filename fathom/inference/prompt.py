"""Encodes messages for the engine: token ids, and the features of the images in them."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fathom.chat import encode_chat
from fathom.checkpoint.weights import WeightSource
from fathom.data.images import open_image, preprocess
from fathom.errors import CheckpointError, DataError, SpecError
from fathom.files import read_text, sha256
from fathom.model.decoder import Decoder
from fathom.model.vision import ImageBatch
from fathom.spec.images import ImageProcessing, processing_from_hf
from fathom.tokenizer import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, slots=True)
class Prompt:
    """An encoded conversation; ``features_ND`` has a row per image token of ``token_ids``."""

    token_ids: tuple[int, ...]
    features_ND: Tensor | None = None


def make_prompt(
    model: Decoder,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    processing: ImageProcessing | None = None,
    template: str | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
    features: FeatureCache | None = None,
    cache_salt: str = "",
    max_prompt_tokens: int | None = None,
) -> Prompt:
    """Encode messages by the chat template, and run their images through the vision towers.

    A content is a text or a list of parts; an image part holds its picture under ``image`` or ``image_url``: a path, a
    ``data:`` URI or the bytes of an image file. ``variables``, tools among them, are passed to the template.
    ``features`` caches the features of images, for callers of one ``cache_salt`` only. With ``continue_final_message``
    the prompt ends inside the last message.

    Raises:
        DataError: a message or an image cannot be read, or the model has no vision towers.
        TooManyTokens: the text has more than ``max_prompt_tokens``.
    """
    sources = [source for message in messages for source in _images(message)]
    vision = model.spec.vision
    if sources and vision is None:
        raise DataError(f"{model.spec.name}: sees no images; leave them out, or use a vision model")
    ids = encode_chat(
        tokenizer,
        messages,
        template,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        image_token_id=None if vision is None else vision.image_token_id,
        tokens_per_image=1 if vision is None else vision.tokens_per_image,
        max_prompt_tokens=max_prompt_tokens,
        **(variables or {}),
    )
    if vision is None or not sources:
        return Prompt(tuple(ids))
    kept = features or FeatureCache(len(sources))
    rows = [
        kept.features(image, lambda image: features_of(model, preprocess([image], vision, processing)), cache_salt)
        for image in map(open_image, sources)
    ]
    return Prompt(tuple(ids), torch.cat(rows))


class FeatureCache:
    """LRU cache of image features by pixels, so that a conversation runs each image through the towers once.

    For one model with fixed weights. Thread-safe.
    """

    def __init__(self, max_images: int = 32) -> None:
        self.max_images = max_images
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = Lock()

    def features(self, image: Image, compute: Callable[[Image], Tensor], salt: str = "") -> Tensor:
        """Return the features of an image, (N, D), computed unless cached under this ``salt``."""
        key = sha256(repr((salt, image.size)).encode() + image.tobytes())
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        rows_ND = compute(image)
        with self._lock:
            self._kept[key] = rows_ND
            while len(self._kept) > self.max_images:
                self._kept.popitem(last=False)
        return rows_ND


def image_processing(source: WeightSource) -> ImageProcessing | None:
    """Return the image processing of a directory, or None where the model has no vision or no processor file.

    Raises:
        CheckpointError: the directory's preprocessor_config.json cannot be used.
    """
    vision = source.spec.vision
    if vision is None or not source.path.is_dir():
        return None
    for path in (source.path / name for name in PROCESSOR_FILES):
        if path.is_file():
            try:
                return processing_from_hf(json.loads(read_text(path)), vision)
            except (OSError, ValueError, AttributeError) as error:
                fault = error if isinstance(error, SpecError) else f"cannot be read ({error}); download it again"
                raise CheckpointError(f"{path}: {fault}") from None
    return None


def features_of(model: Decoder, images: ImageBatch) -> Tensor:
    """Run images through the vision towers and flatten the features to (N, D)."""
    if model.vision is None:
        raise DataError(f"{model.spec.name}: sees no images; leave them out, or use a vision model")
    moved = images.part(slice(None), model.device)
    with torch.inference_mode():
        return model.vision(moved).flatten(0, 1)  # type: ignore[no-any-return]


def _images(message: Mapping[str, Any]) -> list[str | Path | bytes]:
    content = message.get("content") if isinstance(message, Mapping) else None
    parts = content if isinstance(content, list) else []
    return [_source(part) for part in parts if isinstance(part, Mapping) and part.get("type") in ("image", "image_url")]


def _source(part: Mapping[str, Any]) -> str | Path | bytes:
    source = part.get("image", part.get("image_url"))
    if isinstance(source, Mapping):
        source = source.get("url")
    if not isinstance(source, str | Path | bytes):
        raise DataError("messages: an image part holds no picture; give it under image, as a path, data: URI or bytes")
    return source
