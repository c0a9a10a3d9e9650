"""``pip install`` with a compiler, without any, and switched off: the library is there, or Fathom works without it."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fathom.kernels.native import build

ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the native library is not built on Windows"),
]
REPORT = """
import json, torch
from fathom.kernels import native
from fathom.kernels.native import library
facts = dict(library.facts()) | {"file": native.__file__}
if library.available():
    from fathom.kernels.native.matrix import pack
    torch.manual_seed(0)
    weight, x = torch.randn(48, 64), torch.randn(3, 64)
    facts["close"] = torch.allclose(pack(weight, "float32").product(x), x @ weight.T, atol=1e-4)
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The files that a build needs, where builds leave their own."""
    folder = tmp_path_factory.mktemp("checkout")
    without = shutil.ignore_patterns("__pycache__", build.LIBRARY.name, build.NOT_BUILT.name)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("build_backend", "fathom", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=without)
    return folder


def install(checkout: Path, target: Path, *options: str, **environment: str) -> tuple[dict[str, object], str]:
    """Install into a folder of its own; return what the library then says of itself, and the wheel's tag."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*pip, "--target", str(target), *options, str(checkout)],
        env={name: value for name, value in os.environ.items() if name != "CC"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    kept = os.environ | {"PYTHONPATH": str(target), "FATHOM_NATIVE": ""}
    found = json.loads(subprocess.check_output([sys.executable, "-c", REPORT], cwd=target, env=kept, text=True))
    assert Path(found["file"]).is_relative_to(target)
    (wheel,) = target.glob("fathom_lm-*.dist-info/WHEEL")
    return found, next(line[5:] for line in wheel.read_text().splitlines() if line.startswith("Tag: "))


@pytest.mark.usefixtures("native")
def test_with_the_systems_compiler_the_library_is_built_and_computes(checkout, tmp_path):
    found, tag = install(checkout, tmp_path, "--no-build-isolation")
    assert found["close"]
    assert tag.startswith("py3-none-")
    assert not tag.endswith("any")


@pytest.mark.timeout(900)
def test_without_any_compiler_zig_is_fetched_for_the_build_alone(checkout, tmp_path):
    """Needs an index of packages that has ziglang (100 MB)."""
    (tmp_path / "bin").mkdir()
    found, tag = install(checkout, tmp_path / "site", PATH=str(tmp_path / "bin"))
    assert found["close"]
    assert not tag.endswith("any")
    assert not list((tmp_path / "site").glob("ziglang*"))


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"FATHOM_NATIVE": "0"}, "FATHOM_NATIVE=0 was set when Fathom was installed"),
        ({"CC": "/bin/false"}, "/bin/false failed with status 1: no message"),
        ({"PATH": "/var/empty"}, "no C compiler: neither $CC, cc, gcc nor clang, nor package ziglang"),
    ],
    ids=["off", "broken", "none"],
)
def test_without_the_library_the_installation_succeeds_and_says_why(environment, reason, checkout, tmp_path):
    """Without build isolation nothing is fetched, zig neither."""
    if "PATH" in environment and importlib.util.find_spec("ziglang"):
        pytest.skip("package ziglang is installed here, which is a compiler")
    found, tag = install(checkout, tmp_path, "--no-build-isolation", **environment)
    assert found["reason"] == f"it was not built ({reason})"
    assert str(tmp_path) in found["command"]
    assert tag == "py3-none-any"
