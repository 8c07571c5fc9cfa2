"""Dynamic batching: one thread owns the engine; what arrives while it is busy goes together into the next batch.

A lone request starts at once, for nothing ever waits on purpose. Under load batches grow by themselves, because more
arrives while the engine is busy.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from service.errors import DeadlineExceeded, EngineStopped, Overloaded
from service.model.bundle import Outputs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inference:
    """One clip's share of a batch, with the seconds that it waited and that the batch took."""

    outputs: Outputs
    queue_s: float
    inference_s: float


@dataclass(eq=False, slots=True)
class _Job:
    frames: npt.NDArray[np.uint8]
    deadline: float
    future: Future[Inference] = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)

    def begin(self) -> bool:
        """Whether to run it. After True it can no longer be cancelled; a cancelled or expired one is finished here."""
        if not self.future.set_running_or_notify_cancel():
            return False
        if time.monotonic() >= self.deadline:
            self.future.set_exception(DeadlineExceeded("the deadline passed while the clip waited for the engine"))
            return False
        return True


class Batcher:
    """Gathers single clips into batches for `infer`, which runs in one thread of its own.

    `infer` gets clips uint8, as many as wait up to the largest of `batch_sizes`, and must give answers that are the
    caller's own. At most `max_waiting` clips wait. `warm_up` is run first in that thread, since what an engine prepares
    may hold for one thread only; the constructor returns when that is done, and raises what it raised. `on_batch`
    hears the number of clips of each batch, in the engine's thread.
    """

    def __init__(
        self,
        infer: Callable[[Sequence[npt.NDArray[np.uint8]]], Outputs],
        *,
        batch_sizes: Sequence[int],
        max_waiting: int,
        warm_up: Callable[[], Any] = lambda: None,
        on_batch: Callable[[int], Any] = lambda clips: None,
    ) -> None:
        self._infer = infer
        self._largest = max(batch_sizes)
        self._max_waiting = max_waiting
        self._on_batch = on_batch
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()  # guards _waiting and _closed
        self._closed = False
        # A daemon, so that an inference that hangs cannot keep the process from ending; close() waits for it.
        warm: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=[warm_up, warm], name="engine", daemon=True)
        self._thread.start()
        warm.result()

    @property
    def depth(self) -> int:
        """Clips that wait for the engine now."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether requests are still accepted; False once closed or after the engine's thread has died."""
        return not self._closed

    async def submit(self, frames: npt.NDArray[np.uint8], deadline: float) -> Inference:
        """The network's answer for one clip.

        `deadline` is on the clock of `time.monotonic()`. A clip whose deadline has passed, or whose caller was
        cancelled, by the time its turn comes costs no inference.

        Raises Overloaded, DeadlineExceeded, EngineStopped, or whatever `infer` raised on this clip's batch.
        """
        job = _Job(frames, deadline)
        del frames  # the job has them now: see `_run`
        with self._changed:
            if self._closed:
                raise EngineStopped("the engine has stopped")
            if len(self._waiting) >= self._max_waiting:
                raise Overloaded(f"{self._max_waiting} clips wait already")
            self._waiting.append(job)
            self._changed.notify()
        try:
            return await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            self._forget(job)
            raise

    def close(self) -> None:
        """Refuse new clips, finish the accepted ones, end the thread. Blocks until that is done."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _forget(self, job: _Job) -> None:
        """Free a cancelled job's place in the queue at once, unless the engine has it already."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def _work(self, warm_up: Callable[[], Any], warm: Future[None]) -> None:
        try:
            warm_up()
        except BaseException as error:
            warm.set_exception(error)
            return
        warm.set_result(None)
        try:
            while jobs := self._take():
                self._run(jobs)
        except BaseException:
            logger.critical("the engine's thread has died", exc_info=True)
        finally:  # after close() nothing is left to fail; after a death nobody may wait for ever
            with self._changed:
                self._closed = True
                left, self._waiting = self._waiting, deque()
            _fail(left, EngineStopped("the engine's thread has died"))

    def _take(self) -> list[_Job]:
        """The next batch, oldest first; waits for one. Empty once closed with nothing left to do."""
        with self._changed:
            while True:
                jobs: list[_Job] = []
                while self._waiting and len(jobs) < self._largest:
                    job = self._waiting.popleft()
                    if job.begin():
                        jobs.append(job)
                if jobs or self._closed:
                    return jobs
                self._changed.wait()

    def _run(self, jobs: list[_Job]) -> None:
        # To free 6 MB of pages that another process has filled takes 2 ms: here, when the answer is on its way already.
        clips = [job.frames for job in jobs]
        for job in jobs:
            del job.frames
        started = time.monotonic()
        try:
            self._on_batch(len(jobs))
            outputs = self._infer(clips)
            seconds = time.monotonic() - started
            for row, job in enumerate(jobs):
                job.future.set_result(Inference(outputs[row], started - job.submitted, seconds))
        except Exception as error:  # this batch's misfortune; the next may do better
            _fail(jobs, error)
        except BaseException:
            _fail(jobs, EngineStopped("the engine's thread has died"))
            raise


def _fail(jobs: Iterable[_Job], error: Exception) -> None:
    """Give `error` to every job that still waits for an answer, begun or not."""
    for job in jobs:
        future = job.future
        if not future.done() and (future.running() or future.set_running_or_notify_cancel()):
            future.set_exception(error)
