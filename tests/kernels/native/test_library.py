import os

import pytest

from fathom.errors import FathomError
from fathom.kernels.native import library


def test_the_environment_switches_the_library_off_or_names_another():
    assert library.open_library({"FATHOM_NATIVE": "0"}) == (None, "FATHOM_NATIVE=0 switches it off")
    assert library.open_library({"FATHOM_NATIVE": "/no/such.so"}) == (None, "there is no /no/such.so")
    assert library.open_library({"FATHOM_NATIVE": __file__}).reason.startswith("it cannot be loaded (")


@pytest.mark.usefixtures("native")
def test_the_environment_chooses_an_instruction_set_and_a_wrong_one_names_those_that_run():
    best = library.current_isa()
    library.open_library(os.environ | {"FATHOM_ISA": "scalar"})
    try:
        assert library.current_isa() == "scalar"
        usable = ", ".join(library.usable_isas())
        with pytest.raises(FathomError, match=f"FATHOM_ISA: 'sse9' is not among .* choose one of {usable}"):
            library.open_library(os.environ | {"FATHOM_ISA": "sse9"})
    finally:
        library.use_isa(best)


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
