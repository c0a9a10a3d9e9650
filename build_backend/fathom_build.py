"""Setuptools' PEP 517 backend, which asks for a C compiler as a package where the machine has none."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

NATIVE = Path("fathom", "kernels", "native")
# What ``make wheels`` builds, named by FATHOM_WHEEL: the wheel's platform and zig's target.
PLATFORMS = {
    "linux-x86_64": ("manylinux_2_17_x86_64.manylinux2014_x86_64", "x86_64-linux-gnu.2.17"),
    "linux-aarch64": ("manylinux_2_17_aarch64.manylinux2014_aarch64", "aarch64-linux-gnu.2.17"),
    "macos-arm64": ("macosx_11_0_arm64", "aarch64-macos.11.0"),
}


def native_build() -> ModuleType:
    """Return ``fathom.kernels.native.build``, which imports nothing of Fathom."""
    spec = importlib.util.spec_from_file_location("fathom_native_build", NATIVE / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def foreign_platform() -> tuple[str, str] | None:
    """Return the platform that FATHOM_WHEEL names, to build for another machine with zig."""
    name = os.environ.get("FATHOM_WHEEL", "")
    if name and name not in PLATFORMS:
        raise SystemExit(f"FATHOM_WHEEL: {name!r} is no platform; choose one of {', '.join(PLATFORMS)}")
    return PLATFORMS[name] if name else None


def get_requires_for_build_wheel(config_settings: Mapping[str, object] | None = None) -> list[str]:
    """Return what building a wheel needs besides setuptools."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_compiler()]


def get_requires_for_build_editable(config_settings: Mapping[str, object] | None = None) -> list[str]:
    """Return what an editable installation needs besides setuptools."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_compiler()]


def _compiler() -> list[str]:
    build = native_build()
    return [build.ZIG_REQUIREMENT] if foreign_platform() else build.missing_requirements()
