"""Block hashes of full pages: equal hashes mean equal tokens, equal images and an equal prefix.

A page's hash is a SHA-256 over fields that each carry a type and a length, so that different contents are never
encoded alike. It starts with its parent's hash, and the first parent's with the request's salt and adapter.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor


def _digest(*fields: tuple[bytes, bytes]) -> bytes:
    whole = hashlib.sha256()
    for kind, content in fields:
        whole.update(kind)
        whole.update(len(content).to_bytes(8, "little"))
        whole.update(content)
    return whole.digest()


class BlockHasher:
    """The block hashes of one sequence's full pages, computed as its tokens become known."""

    def __init__(
        self, page_size: int, *, salt: str = "", adapter: str | None = None, images: ImageTokenFeatures | None = None
    ) -> None:
        self._size = page_size
        self._images = images
        fields = [(b"R", b"fathom page"), (b"S", salt.encode())]
        self._parent = _digest(*fields, *([] if adapter is None else [(b"A", adapter.encode())]))
        self._hashes: list[bytes] = []

    def hashes(self, tokens: Sequence[int], pages: int) -> Sequence[bytes]:
        """Return the hashes of at least the first ``pages`` pages of ``tokens``, which reach as far and only grow."""
        while len(self._hashes) < pages:
            start = len(self._hashes) * self._size
            ids = array("q", tokens[start : start + self._size])
            fields = [(b"P", self._parent), (b"T", ids.tobytes())]
            seen = b"" if self._images is None else self._images.content(start, start + self._size)
            if seen:
                fields.append((b"I", seen))
            self._parent = _digest(*fields)
            self._hashes.append(self._parent)
        return self._hashes


class ImageTokenFeatures:
    """The image tokens of a prompt and their features: row n belongs to the n-th image token."""

    def __init__(self, prompt: Sequence[int], image_token_id: int, features_ND: Tensor) -> None:
        self._places = [index for index, token in enumerate(prompt) if token == image_token_id]
        self._features_ND = features_ND

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the features of the image tokens among tokens ``start`` to ``stop``."""
        return self._features_ND[bisect_left(self._places, start) : bisect_left(self._places, stop)]

    def content(self, start: int, stop: int) -> bytes:
        """Return a digest of these features, and nothing where there are none."""
        rows_ND = self.rows(start, stop)
        if not len(rows_ND):
            return b""
        values = rows_ND.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes()
        kind = f"{rows_ND.dtype} {tuple(rows_ND.shape)}".encode()
        return _digest((b"K", kind), (b"V", values))
