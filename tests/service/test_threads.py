import asyncio
import threading
from collections.abc import Callable

import pytest

from service.errors import Overloaded
from service.threads import run_alone

pytestmark = pytest.mark.anyio


class Work:
    """A function that runs until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.begun = 0
        self.ended = 0

    def __call__(self) -> int:
        self.begun += 1
        assert self.released.wait(60)
        return self.begun

    def end(self) -> None:
        self.ended += 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def test_one_function_runs_at_a_time_and_its_value_is_returned() -> None:
    free, work = asyncio.Semaphore(1), Work()
    calls = [asyncio.create_task(run_alone(free, work, ended=work.end)) for _ in range(3)]
    await until(lambda: work.begun == 1)
    await asyncio.sleep(0.02)
    assert work.begun == 1
    work.released.set()

    assert sorted(await asyncio.gather(*calls)) == [1, 2, 3]
    assert work.ended == 3


async def test_a_cancelled_call_keeps_others_waiting_until_its_function_has_ended() -> None:
    free, work = asyncio.Semaphore(1), Work()
    abandoned, left, patient = (asyncio.create_task(run_alone(free, work, ended=work.end)) for _ in range(3))
    await until(lambda: work.begun == 1)
    abandoned.cancel()
    left.cancel()
    await asyncio.wait([abandoned, left])
    await asyncio.sleep(0.02)
    assert (work.begun, work.ended) == (1, 1)  # the call that was still waiting has ended
    work.released.set()

    assert await patient == 2
    assert work.ended == 3


async def test_an_error_is_raised_and_lets_the_next_call_begin() -> None:
    def fail() -> None:
        raise ValueError("bad")

    free = asyncio.Semaphore(1)
    with pytest.raises(ValueError, match="bad"):
        await run_alone(free, fail)

    assert await run_alone(free, lambda: 7) == 7


async def test_a_call_is_refused_and_holds_nothing_if_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    free, work = asyncio.Semaphore(1), Work()
    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(Overloaded, match="no thread"):
        await run_alone(free, work, ended=work.end)

    assert (work.ended, free.locked()) == (1, False)


async def test_work_does_not_wait_for_the_threads_of_the_event_loop() -> None:
    released = threading.Event()
    blocking = [asyncio.create_task(asyncio.to_thread(released.wait, 60)) for _ in range(64)]
    async with asyncio.timeout(30):
        assert await run_alone(asyncio.Semaphore(1), lambda: 7) == 7
    released.set()
    await asyncio.gather(*blocking)
