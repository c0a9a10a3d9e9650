"""Names, versions and hashes of packages are nothing else, wherever a manifest or table gives them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from fathom.data.fetch import fetch
from fathom.data.manifest import load_manifest
from fathom.errors import SpecError
from fathom.inference.catalog import catalog
from fathom.spec.package import PinnedPackage, check_pin

DIGEST = "a" * 64
NAMES = [
    "evil @ https://example.org/x.whl",
    "evil @ file:///tmp/x #",
    "evil\n--index-url https://example.org",
    "evil\n",
    "\nevil",
    "-r requirements.txt",
    "--index-url=https://example.org",
    "-e.",
    "../x",
    "./x",
    "/etc/passwd",
    "C:\\x",
    "https://example.org/x.whl",
    "git+https://example.org/x",
    "evil[extra]",
    "evil; python_version > '3'",
    "evil==1.0",
    "evil ",
    " evil",
    "ev il",
    "${HOME}",
    "$HOME",
    "%HOME%",
    "еvil",  # a Cyrillic letter
    "ſet",  # folds to s
    "\u212aey",  # folds to k
    "evil\u200b",
    "evil\x00",
    "evil\x1b[2J",
    "\u202eevil",
    "evil/",
    "evil?x",
    "evil#sha256=0",
    "evil%2f",
    "",
    "-",
    ".",
    "..",
    "-evil",
    "evil-",
    "_evil",
    "a" * 201,
    "e" * 1_000_000,
]
UNCANONICAL = ["Evil", "ev_il", "ev.il", "ev--il", "EVIL"]
VERSIONS = [
    "1.0 @ https://example.org",
    "1.0\n--pre",
    "1.0\n",
    " 1.0",
    "1.0 ",
    "*",
    "1.*",
    ">=1.0",
    "1.0,<2",
    "==1.0",
    "1.0; x",
    "1.0 --hash=sha256:0",
    "../1.0",
    "1.0/../../x",
    "latest",
    "１.0",
    "1.0+ſ",
    "1.0\x00",
    "${V}",
    "",
    "1" * 201,
    "1" * 1_000_000,
]
HASHES = [
    "",
    "a" * 1_000_000,
    "A" * 64,
    "a" * 63,
    "a" * 65,
    "g" * 64,
    "a" * 63 + "\n",
    "../" + "a" * 61,
    "ａ" * 64,
    "a" * 32 + "/" * 32,
]
MANIFEST = """
[[sources]]
kind = "package"
name = "demo"
language = "code"
package = {package}
version = {version}
sha256 = {sha256}
files = ["*.py"]
extractor = "python"
licence = "MIT"
weight = 1.0
"""


def toml(text: str) -> str:
    return '"' + "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in text) + '"'


def refusal(path: Path, **fields: str) -> SpecError:
    values = {"package": "demo-text", "version": "1.0", "sha256": DIGEST} | fields
    path.write_text(MANIFEST.format(**{name: toml(value) for name, value in values.items()}))
    with pytest.raises(SpecError) as caught:
        load_manifest(path)
    return caught.value


@pytest.mark.parametrize(
    ("field", "value"),
    [("package", name) for name in NAMES + UNCANONICAL]
    + [("version", version) for version in VERSIONS]
    + [("sha256", digest) for digest in HASHES],
    ids=lambda value: ascii(value)[:30],
)
def test_a_manifest_cannot_bring_anything_but_names_versions_and_hashes(field: str, value: str, tmp_path: Path) -> None:
    error = refusal(tmp_path / "sources.toml", **{field: value})
    assert f"sources[0].{field}: " in str(error)
    assert str(error).isprintable()
    assert len(str(error)) < 600
    for cls in (PinnedPackage, type(catalog()["smollm2-135m"])):
        good = PinnedPackage(package="a", version="1", sha256=DIGEST, licence="MIT") if cls is PinnedPackage else None
        with pytest.raises(SpecError, match=f"^{field}: "):
            dataclasses.replace(good or catalog()["smollm2-135m"], **{field: value})


@pytest.mark.parametrize("name", UNCANONICAL)
def test_the_remedy_for_a_name_in_another_form_works(name: str, tmp_path: Path) -> None:
    error = refusal(tmp_path / "sources.toml", package=name)
    written = re.fullmatch(r'write "(.+)"', error.remedy)
    assert written is not None
    check_pin(written.group(1), "1.0", DIGEST)


def test_fetch_checks_what_it_is_handed(tmp_path: Path) -> None:
    class Handed:
        name, package, version, sha256 = "x", "x", "1.0", "../" * 21 + "x"

    with pytest.raises(SpecError, match="sha256"):
        fetch(Handed(), tmp_path)


@given(st.text(max_size=20) | st.from_regex(r"[a-z0-9.\-_]{1,12}", fullmatch=True))
@example("a--b")
@example("a\n")
def test_names_that_pass_are_canonical_requirements_of_nothing_but_themselves(name: str) -> None:
    try:
        check_pin(name, "1.0", DIGEST)
    except SpecError:
        try:
            parsed = Requirement(name)
        except InvalidRequirement:
            return
        plain = parsed.name == name and not (parsed.url or parsed.extras or parsed.marker or parsed.specifier)
        assert not plain or canonicalize_name(name) != name
    else:
        assert canonicalize_name(name, validate=True) == name
        assert str(Requirement(name)) == name
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)


@given(st.from_regex(r"v?[0-9]{1,3}(\.[0-9]{1,2}){0,3}((a|b|rc)[0-9])?(\.post[0-9])?(\.dev[0-9])?(\+[a-z0-9.]{1,5})?"))
def test_versions_that_pass_are_one_version(version: str) -> None:
    try:
        check_pin("demo", version, DIGEST)
    except SpecError:
        return
    (specifier,) = Requirement(f"demo=={version}").specifier
    assert specifier.contains(Version(version), prereleases=True)
    assert version.strip() == version


@pytest.mark.parametrize(
    "version", ["1", "3.6.1", "2024.01.05", "1.0rc1", "1!2.0", "1.0+cpu", "v1.0", "1.0.post1", "1.0-1"]
)
def test_versions_of_pep_440_pass(version: str) -> None:
    check_pin("demo-text", version, DIGEST)
