from __future__ import annotations

import hashlib
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fathom.data.corpus import build_corpus
from fathom.data.fetch import IndexSettings
from fathom.data.shards import TokenShards, open_shards, write_shards
from fathom.spec.data import FolderSource, PackageSource
from fathom.spec.recipe import CorpusStep
from fathom.tokenizer import Tokenizer, train_bpe

MakePackage = Callable[..., tuple[PackageSource, IndexSettings]]


def sentences(count: int, seed: int) -> list[str]:
    """Return documents of random words, all different."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 8))) for _ in range(400)]
    return [" ".join(rng.choices(words, k=rng.randint(20, 60))) + "." for _ in range(count)]


@pytest.fixture
def make_package(tmp_path: Path) -> MakePackage:
    """Build a real wheel in a local folder, and the manifest entry and the settings to fetch it from there."""

    def make(
        files: dict[str, str | bytes], name: str = "tinytexts", python: str = ">=3", **fields: Any
    ) -> tuple[PackageSource, IndexSettings]:
        folder = tmp_path / "registry"
        folder.mkdir(exist_ok=True)
        wheel = folder / f"{name}-1.0-py3-none-any.whl"
        info = f"{name}-1.0.dist-info"
        inside: dict[str, str | bytes] = {
            **files,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Python: {python}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": "",
        }
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, content in inside.items():
                archive.writestr(zipfile.ZipInfo(path), content)
        given: dict[str, Any] = {
            "name": name,
            "language": "en",
            "package": name,
            "version": "1.0",
            "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
            "files": ("*.txt",),
            "extractor": "python",
            "licence": "MIT",
            "weight": 1.0,
        }
        return PackageSource(**given | fields), IndexSettings(indexes=(), find_links=(str(folder),))

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    return train_bpe(sentences(200, seed=1), vocab_size=400)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    sources = []
    for number, name in enumerate(["ant", "bee", "cat"], start=2):
        folder = root / name
        folder.mkdir()
        for index, text in enumerate(sentences(40 * number, seed=number)):
            (folder / f"{index:03d}.md").write_text(text)
        sources.append(FolderSource(name=name, path=str(folder)))
    build_corpus(CorpusStep(manifest="-", held_out_fraction=0.1), sources, root / "corpus")
    return root / "corpus"


@pytest.fixture(scope="session")
def tiny_shards(tiny_corpus: Path, tiny_tokenizer: Tokenizer) -> Path:
    write_shards(tiny_corpus, tiny_tokenizer, tiny_corpus.parent / "shards", shard_tokens=2500)
    return tiny_corpus.parent / "shards"


@pytest.fixture(scope="session")
def train_shards(tiny_shards: Path) -> dict[str, TokenShards]:
    return open_shards(tiny_shards, "train")
