"""The tokenizers library's failures as Fathom's errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fathom.errors import DataError, reason_of


@contextmanager
def library_errors(*, plain: bool = False) -> Iterator[None]:
    """Raise ``DataError`` where the library panics: it then raises what is no ``Exception``, and would end a thread.

    ``plain`` also takes the bare ``Exception`` that it raises for a text it cannot encode.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime" and not (plain and type(error) is Exception):
            raise
        raise DataError(
            f"tokenizer.json: the tokenizers library fails on it ({reason_of(error)}); use another tokenizer"
        ) from None
