import pytest

from fathom.kernels.native import library


@pytest.fixture(params=library.usable_isas() if library.available() else ("scalar",))
def isa(request, native):
    """Each instruction set of this machine in turn, in use."""
    library.use_isa(request.param)
    yield request.param
    library.use_isa(library.usable_isas()[-1])
