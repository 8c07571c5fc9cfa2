"""Dynamic batching: clips that arrive while the engine is busy form the next batch.

One thread owns the engine. It never waits for a batch to fill up: a single request starts at once, and under load
batches grow because more clips arrive while the engine is busy.
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

from service.errors import DeadlineExceeded, EngineError, EngineStopped
from service.model.bundle import Outputs

OVERFLOW = (
    "the network overflows for this clip: its outputs are not finite numbers; set LIMELIGHT_PRECISION to another "
    "precision, or export the bundle again"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inference:
    """The answer for one clip of a batch.

    Attributes:
        outputs: The network's outputs for this clip.
        queue_s: Seconds that the clip waited for its batch to begin.
        inference_s: Seconds that the batch took.
    """

    outputs: Outputs
    queue_s: float
    inference_s: float


@dataclass(eq=False, slots=True)
class _Job:
    frames: npt.NDArray[np.uint8]
    deadline: float
    on_run: Callable[[], Any]
    future: Future[Inference] = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)

    def begin(self) -> bool:
        """Return whether to run the job. If True, it can no longer be cancelled.

        An expired job gets its error here.
        """
        if not self.future.set_running_or_notify_cancel():
            return False
        if time.monotonic() >= self.deadline:
            self.future.set_exception(DeadlineExceeded("the deadline passed while the clip waited for the engine"))
            return False
        return True


class Batcher:
    """Gathers single clips into batches, and runs them in a thread of its own until it is closed.

    The constructor returns once ``warm_up`` has run, and raises whatever it raised.

    Args:
        infer: Classifies a batch: a sequence of uint8 clips, at most the largest batch size. Its outputs must not share
            memory with later ones.
        batch_sizes: Batch sizes that ``infer`` accepts; smaller batches are its own matter.
        warm_up: Called first, in the same thread, because CUDA graphs belong to the thread that recorded them. Called
            again after ``infer`` has raised: if it raises as well, the engine is broken for good, as after most errors
            of CUDA, and the thread dies.
        on_batch: Called in the thread with the number of clips of each batch.
        on_failure: Called in the thread for each batch that raises or has an output that is not finite.
    """

    def __init__(
        self,
        infer: Callable[[Sequence[npt.NDArray[np.uint8]]], Outputs],
        *,
        batch_sizes: Sequence[int],
        warm_up: Callable[[], Any] = lambda: None,
        on_batch: Callable[[int], Any] = lambda clips: None,
        on_failure: Callable[[], Any] = lambda: None,
    ) -> None:
        self._infer = infer
        self._largest = max(batch_sizes)
        self._warm_up = warm_up
        self._on_batch = on_batch
        self._on_failure = on_failure
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()  # guards _waiting and _closed
        self._closed = False
        # A daemon thread, so that an inference that hangs cannot keep the process from exiting. close() waits for it.
        warm: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=[warm], name="engine", daemon=True)
        self._thread.start()
        warm.result()

    @property
    def depth(self) -> int:
        """Number of clips that wait for the engine now."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether clips are still accepted: False once closed or after the engine's thread has died."""
        return not self._closed

    async def submit(
        self, frames: npt.NDArray[np.uint8], deadline: float, on_run: Callable[[], Any] = lambda: None
    ) -> Inference:
        """Classify one clip.

        A clip that is cancelled or expires while it waits costs no inference. How many may wait is for the caller to
        limit.

        Args:
            frames: uint8 ``(40, 224, 224, 3)``, RGB.
            deadline: When the batch must have begun, on the clock of ``time.monotonic()``.
            on_run: Called in the engine's thread when the clip's batch has run, whether or not that failed and whether
                or not anybody still waits for the answer. It must not raise.

        Raises:
            DeadlineExceeded: The deadline passed before the clip's batch began.
            EngineStopped: The batcher is closed, or its thread has died.
            EngineError: The network overflowed: its outputs for this clip are not finite.
            Exception: Whatever ``infer`` raised for the clip's batch.
        """
        job = _Job(frames, deadline, on_run)
        del frames  # only the job holds them now, so that `_run` can free them
        with self._changed:
            if self._closed:
                raise EngineStopped("the engine has stopped")
            self._waiting.append(job)
            self._changed.notify()
        try:
            return await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            self._forget(job)
            raise

    def close(self) -> None:
        """Refuse new clips, answer the accepted ones, and end the thread. Blocks until that is done."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _forget(self, job: _Job) -> None:
        """Take a cancelled job out of the queue, unless its batch has begun."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def _work(self, warm: Future[None]) -> None:
        try:
            self._warm_up()
        except BaseException as error:
            warm.set_exception(error)
            return
        warm.set_result(None)
        try:
            while jobs := self._take():
                self._run(jobs)
        except BaseException:
            logger.critical("the engine's thread has died", exc_info=True)
        finally:  # after close() the queue is empty; after a crash every waiting job needs an error
            with self._changed:
                self._closed = True
                left, self._waiting = self._waiting, deque()
            _fail(left, EngineStopped("the engine's thread has died"))

    def _take(self) -> list[_Job]:
        """Wait for the next batch, oldest clip first. It is empty only after ``close``, once the queue is."""
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
        # Freeing 6 MB of pages that another process has filled takes 2 ms. From here on only `clips` holds them, so
        # they are freed when this method returns, after the answers have been sent.
        clips = [job.frames for job in jobs]
        for job in jobs:
            del job.frames
        started = time.monotonic()
        try:
            self._on_batch(len(jobs))
            try:
                outputs = self._infer(clips)
                self._answer(jobs, outputs, started)
            finally:
                for job in jobs:
                    job.on_run()
        except Exception as error:  # fails this batch only, unless warming up shows that every other would fail
            self._on_failure()
            _fail(jobs, error)
            logger.warning("a batch failed; warming up again to find out whether the engine still works")
            self._warm_up()
        except BaseException:
            _fail(jobs, EngineStopped("the engine's thread has died"))
            raise

    def _answer(self, jobs: Sequence[_Job], outputs: Outputs, started: float) -> None:
        seconds = time.monotonic() - started
        finite = outputs.finite
        if not finite:
            self._on_failure()
        for row, job in enumerate(jobs):
            answer = outputs[row]
            if finite or answer.finite:
                job.future.set_result(Inference(answer, started - job.submitted, seconds))
            else:  # no reason to warm up again, because it depends on the clip
                job.future.set_exception(EngineError(OVERFLOW))


def _fail(jobs: Iterable[_Job], error: Exception) -> None:
    """Set an error for every job that has no answer yet, whether or not it has begun."""
    for job in jobs:
        future = job.future
        if not future.done() and (future.running() or future.set_running_or_notify_cancel()):
            future.set_exception(error)
