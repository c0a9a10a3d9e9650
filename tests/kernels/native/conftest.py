import os

import pytest

from fathom.kernels.native import library


@pytest.fixture(scope="session")
def native() -> None:
    """The library is needed: without it a test is skipped, and fails in CI."""
    if library.available():
        return
    reason = f"the native library cannot be used: {library.unavailable_reason()}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(params=library.usable_isas() if library.available() else ("scalar",))
def isa(request, native):
    """Each instruction set of this machine in turn, in use."""
    library.use_isa(request.param)
    yield request.param
    library.use_isa(library.usable_isas()[-1])
