import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "transformers", "tokenizers", "pydantic", "matplotlib", "safetensors")


def loaded(module: str, names: tuple[str, ...]) -> list[str]:
    code = f"import json, sys, {module}; print(json.dumps([n for n in {names!r} if n in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "module",
    ["fathom", "fathom.spec", "fathom.spec.recipe", "fathom.spec.hf", "fathom.families", "fathom.plan"],
)
def test_specs_families_and_plans_load_the_standard_library_only(module: str) -> None:
    assert loaded(module, (*HEAVY, "typer", "rich")) == []


def test_listing_models_needs_no_torch() -> None:
    assert loaded("fathom.cli.models", HEAVY) == []


def test_the_check_itself_can_fail() -> None:
    assert loaded("numpy", HEAVY) == ["numpy"]
