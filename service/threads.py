"""Runs work in threads, one piece of a kind at a time."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from service.errors import Overloaded

T = TypeVar("T")


async def run_alone(free: asyncio.Semaphore, work: Callable[[], T], *, ended: Callable[[], Any] = lambda: None) -> T:
    """Run a function in a thread as soon as ``free`` can be acquired, and release that when the function has ended.

    A thread cannot be cancelled: if the caller is, the function runs on and ``free`` stays acquired. Otherwise
    abandoned functions would take more memory than is counted. The thread is not one of the event loop's pool, which
    other work may block.

    Args:
        free: Limits how many functions of this kind run at a time.
        work: The function.
        ended: Called when the function has ended, or if it will not be called.

    Raises:
        Overloaded: The kernel allows no further thread.
    """
    with contextlib.ExitStack() as ending:
        ending.callback(ended)
        await free.acquire()
        ending.callback(free.release)
        executor = ThreadPoolExecutor(1)
        try:
            thread = asyncio.get_running_loop().run_in_executor(executor, work)
        except RuntimeError as error:
            raise Overloaded("no thread can be started for this request; try again later") from error
        executor.shutdown(wait=False)
        ending.callback(thread.exception)  # asyncio logs errors that nobody looks at, and the caller may be gone
        at_end = ending.pop_all()
        thread.add_done_callback(lambda _: at_end.close())
    return await asyncio.shield(thread)
