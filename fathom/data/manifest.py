"""Reading a manifest: the TOML list of a corpus's sources."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fathom.data.extract import EXTRACTORS
from fathom.errors import SpecError
from fathom.spec import from_mapping, read_toml
from fathom.spec.data import FolderSource, Manifest, PackageSource, Source


def load_manifest(path: Path) -> Manifest:
    """Read and check a manifest; relative folders are taken from the manifest's own folder.

    Every problem raises ``SpecError`` located in the file, an unknown extractor included.
    """
    values = read_toml(path)
    try:
        manifest = from_mapping(Manifest, values)
    except SpecError as error:
        raise SpecError(f"{path}: {error.path}", error.problem, error.remedy) from None
    check_extractors(manifest, str(path))
    return Manifest(sources=tuple(_resolved(source, path) for source in manifest.sources))


def check_extractors(manifest: Manifest, where: str) -> None:
    """Require extractors that exist; ``SpecError`` is located below ``where``."""
    for index, source in enumerate(manifest.sources):
        if isinstance(source, PackageSource) and source.extractor not in EXTRACTORS:
            raise SpecError(
                f"{where}: sources[{index}].extractor",
                f"unknown extractor {source.extractor!r}",
                f"use one of {', '.join(sorted(EXTRACTORS))}",
            )


def _resolved(source: Source, path: Path) -> Source:
    if isinstance(source, FolderSource):
        return dataclasses.replace(source, path=str(path.parent / Path(source.path).expanduser()))
    return source
