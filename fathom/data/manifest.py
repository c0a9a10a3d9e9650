"""Reading a manifest: the TOML list of a corpus's sources."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fathom.data.extract import EXTRACTORS
from fathom.errors import SpecError
from fathom.spec import read_toml
from fathom.spec.data import FolderSource, Manifest, PackageSource, Source
from fathom.spec.faults import Faults, from_mapping_or_faults


def load_manifest(path: Path) -> Manifest:
    """Read and check a manifest; relative folders are taken from the manifest's own folder.

    Every problem raises ``SpecError`` located in the file, an unknown extractor included; several, ``SpecErrors``.
    """
    values = read_toml(path)
    manifest, wrong = from_mapping_or_faults(Manifest, values)
    faults = Faults(wrong)
    try:
        faults.raise_if_any()
    except SpecError as error:
        raise error.in_file(str(path)) from None
    assert manifest is not None
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
