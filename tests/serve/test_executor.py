"""The threads that prepare prompts."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fathom.serve.errors import ApiError
from fathom.serve.executor import PreprocessExecutor


def test_heavy_work_is_bounded_in_number_and_time() -> None:
    free = threading.Event()

    async def run() -> None:
        executor = PreprocessExecutor(threads=2, max_jobs=1, seconds=0.05, body_memory=1 << 20)
        with pytest.raises(ApiError, match="over") as slow:
            await executor.run(lambda: free.wait(20))
        assert slow.value.status == 400
        with pytest.raises(ApiError, match="prepared") as busy:
            await executor.run(lambda: None)
        assert (busy.value.status, busy.value.retry_after) == (429, 1)
        free.set()
        while executor.pending:
            await asyncio.sleep(0.01)
        assert await executor.run(lambda: 3) == 3
        with pytest.raises(ZeroDivisionError):
            await executor.run(lambda: 1 // 0)
        executor.close()

    asyncio.run(run())
