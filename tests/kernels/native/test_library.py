import os
import subprocess
import sys

import pytest

from fathom.errors import FathomError
from fathom.kernels.native import library


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"from fathom.kernels.native import library\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_the_environment_switches_the_library_off():
    done = python("print(library.available(), library.unavailable_reason())", FATHOM_NATIVE="0")
    assert done.stdout.strip() == "False FATHOM_NATIVE=0 switches it off"


@pytest.mark.usefixtures("native")
def test_the_environment_chooses_an_instruction_set_and_a_wrong_one_names_those_that_run():
    assert python("library.available(); print(library.current_isa())", FATHOM_ISA="scalar").stdout.strip() == "scalar"
    wrong = python("library.available()", FATHOM_ISA="sse9").stderr.strip().splitlines()[-1]
    usable = ", ".join(library.usable_isas())
    assert wrong.endswith(f"FATHOM_ISA: 'sse9' is not among what runs here; choose one of {usable}")


@pytest.mark.usefixtures("native")
def test_the_best_instruction_set_is_the_default_and_what_linux_lists_is_found():
    assert library.current_isa() == library.usable_isas()[-1]
    try:
        with open("/proc/cpuinfo", encoding="ascii") as lines:
            flags = next((set(line.split(":")[1].split()) for line in lines if line.startswith("flags")), set())
    except OSError:
        flags = set()
    if flags:
        needed = {
            "avx2": {"avx2", "fma", "f16c"},
            "avxvnni": {"avx2", "fma", "f16c", "avx_vnni"},
            "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
        }
        assert set(library.usable_isas()) - {"scalar"} == {name for name, words in needed.items() if words <= flags}


@pytest.mark.usefixtures("native")
def test_what_the_library_refuses_is_an_error_in_its_words():
    with pytest.raises(FathomError, match="a pool has 1 to 256 threads, not 0"):
        library.ThreadPool(0)
    with pytest.raises(FathomError, match="there is no instruction set -1"):
        library.use_isa("sse9")
