"""Removing repeated documents: exactly repeated ones by hash, near copies by MinHash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.data.minhash import Signer
from fathom.errors import DataError
from fathom.extras import install_extra
from fathom.spec.data import Deduplication

_WEIGHTS = (0.1, 0.9)


def content_key(text: str) -> bytes:
    """Return 16 bytes that texts share exactly when they differ only in case and white space."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()


class ExactDeduplicator:
    """Remembers every text it saw, across sources, by ``content_key``."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def is_new(self, key: bytes) -> bool:
        """Return whether this key comes for the first time."""
        before = len(self._seen)
        self._seen.add(key)
        return len(self._seen) > before


class NearDeduplicator:
    """Finds texts that are near copies of an earlier kept one, across sources and calls.

    Candidates come from locality-sensitive hashing (datasketch's MinHashLSH); a candidate is a near copy when the
    signatures agree in at least ``threshold`` of their places. A dropped text never causes another to be dropped.
    Needs the extra ``data``; without it ``DataError``.
    """

    def __init__(self, spec: Deduplication) -> None:
        self._threshold = spec.threshold
        self._signer = Signer(permutations=spec.permutations, shingle_chars=spec.shingle_chars)
        self._index = _index(spec)
        self._kept: list[NDArray[np.uint32]] = []

    def keep(self, texts: Sequence[str]) -> list[bool]:
        """Return for each text whether it is no near copy of a text kept before it."""
        signatures = self._signer.sign([" ".join(text.casefold().split()) for text in texts])
        return [self._is_new(signature) for signature in signatures]

    def _is_new(self, signature: NDArray[np.uint32]) -> bool:
        minhash = _Signature(signature)
        for key in self._index.query(minhash):
            if np.mean(self._kept[key] == signature) >= self._threshold:
                return False
        self._index.insert(len(self._kept), minhash, check_duplication=False)
        self._kept.append(signature)
        return True


class _Signature:
    """What MinHashLSH asks of a MinHash, without the permutations that a real one carries."""

    __slots__ = ("hashvalues", "scheme")

    def __init__(self, hashvalues: NDArray[np.uint32]) -> None:
        self.hashvalues = hashvalues
        self.scheme = "legacy"

    def __len__(self) -> int:
        return len(self.hashvalues)


def _index(spec: Deduplication) -> Any:
    try:
        from datasketch import MinHashLSH
    except ImportError:
        raise DataError(
            f"deduplication: datasketch is not installed; run `{install_extra('data')}` or set threshold = 1.0"
        ) from None
    # candidates are checked afterwards, so a missed copy costs more than a needless candidate
    return MinHashLSH(threshold=spec.threshold, num_perm=spec.permutations, weights=_WEIGHTS)
