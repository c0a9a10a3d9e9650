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


def test_waiting_for_a_thread_takes_no_time_of_the_work_and_what_nobody_waits_for_does_not_begin() -> None:
    free, done = threading.Event(), list[int]()

    async def run() -> None:
        executor = PreprocessExecutor(threads=1, max_jobs=9, seconds=0.2, body_memory=1 << 20)
        first = asyncio.create_task(executor.run(lambda: free.wait(20)))
        with pytest.raises(ApiError, match="over"):
            await first  # its thread is still taken
        queued = [asyncio.create_task(executor.run(lambda each=each: done.append(each))) for each in range(3)]  # type: ignore[misc]
        await asyncio.sleep(0.3)
        queued[1].cancel()
        await asyncio.wait([queued[1]])
        free.set()
        await asyncio.gather(queued[0], queued[2])
        assert done == [0, 2]
        while executor.pending:
            await asyncio.sleep(0.01)
        executor.close()

    asyncio.run(run())
