import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from service.errors import DeadlineExceeded, EngineError, EngineStopped
from service.model.batcher import Batcher, Inference
from service.model.bundle import Outputs

pytestmark = pytest.mark.anyio

FAR = float("inf")  # a deadline that never passes


class FakeEngine:
    """Returns each clip as its probabilities once ``allowed`` is set. A clip of 255 fails its batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.allowed = threading.Event()
        self.allowed.set()
        self.death: BaseException | None = None

    def __call__(self, clips: Sequence[npt.NDArray[np.uint8]]) -> Outputs:
        frames = np.stack(clips)
        self.batches.append(frames[:, 0].tolist())
        assert self.allowed.wait(30)
        if self.death is not None:
            raise self.death
        if 255 in frames:
            raise ValueError("the engine failed")
        return Outputs(frames.astype(np.float32), None)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def batcher(engine: FakeEngine) -> AsyncIterator[Batcher]:
    batcher = Batcher(engine, batch_sizes=(1, 2, 4))
    yield batcher
    engine.allowed.set()
    batcher.close()


def clip(number: int) -> npt.NDArray[np.uint8]:
    return np.array([number], np.uint8)


def submit(batcher: Batcher, number: int, deadline: float = FAR) -> asyncio.Task[Inference]:
    return asyncio.create_task(batcher.submit(clip(number), deadline))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def keep_busy(engine: FakeEngine, batcher: Batcher, number: int = 99) -> asyncio.Task[Inference]:
    """Start a batch that runs until ``engine.allowed`` is set."""
    engine.allowed.clear()
    task = submit(batcher, number)
    await until(lambda: bool(engine.batches) and engine.batches[-1] == [number])
    return task


async def test_a_single_clip_starts_at_once_in_a_batch_of_one(engine: FakeEngine, batcher: Batcher) -> None:
    answer = await batcher.submit(clip(7), FAR)

    assert answer.outputs.probabilities.tolist() == [7]
    assert engine.batches == [[7]]


async def test_clips_that_arrive_while_the_engine_is_busy_share_the_next_batch(
    engine: FakeEngine, batcher: Batcher
) -> None:
    first = await keep_busy(engine, batcher)
    tasks = [submit(batcher, number) for number in (1, 2, 3, 4)]
    await until(lambda: batcher.depth == 4)
    engine.allowed.set()

    answers = await asyncio.gather(first, *tasks)

    assert engine.batches == [[99], [1, 2, 3, 4]]
    assert [answer.outputs.probabilities.tolist() for answer in answers] == [[99], [1], [2], [3], [4]]


async def test_no_batch_is_larger_than_the_largest_size(engine: FakeEngine, batcher: Batcher) -> None:
    await keep_busy(engine, batcher)
    tasks = [submit(batcher, number) for number in (1, 2, 3, 4, 5, 6)]
    await until(lambda: batcher.depth == 6)
    engine.allowed.set()

    await asyncio.gather(*tasks)

    assert engine.batches == [[99], [1, 2, 3, 4], [5, 6]]


async def test_the_size_of_each_batch_is_reported(engine: FakeEngine) -> None:
    sizes: list[int] = []
    batcher = Batcher(engine, batch_sizes=(4,), on_batch=sizes.append)

    await batcher.submit(clip(1), FAR)
    batcher.close()

    assert sizes == [1]


async def test_warming_up_runs_first_in_the_thread_that_infers(engine: FakeEngine) -> None:
    threads: list[int] = []

    def infer(clips: Sequence[npt.NDArray[np.uint8]]) -> Outputs:
        threads.append(threading.get_ident())
        return engine(clips)

    batcher = Batcher(infer, batch_sizes=(1,), warm_up=lambda: threads.append(threading.get_ident()))
    assert len(threads) == 1
    await batcher.submit(clip(1), FAR)
    batcher.close()

    assert len(threads) == 2
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


async def test_an_error_while_warming_up_is_raised_by_the_constructor(engine: FakeEngine) -> None:
    def fail() -> None:
        raise ValueError("too cold")

    with pytest.raises(ValueError, match="too cold"):
        Batcher(engine, batch_sizes=(1,), warm_up=fail)


async def test_queue_and_inference_are_timed_separately(engine: FakeEngine, batcher: Batcher) -> None:
    await keep_busy(engine, batcher)
    task = submit(batcher, 1)
    await until(lambda: batcher.depth == 1)
    await asyncio.sleep(0.05)
    engine.allowed.set()

    answer = await task

    assert answer.queue_s >= 0.05
    assert answer.inference_s >= 0


async def test_a_cancelled_clip_leaves_the_queue_and_costs_no_inference(engine: FakeEngine, batcher: Batcher) -> None:
    await keep_busy(engine, batcher)
    unwanted, wanted = submit(batcher, 1), submit(batcher, 2)
    await until(lambda: batcher.depth == 2)

    unwanted.cancel()
    await until(unwanted.done)
    assert batcher.depth == 1
    engine.allowed.set()
    await wanted

    assert engine.batches == [[99], [2]]


async def test_a_clip_cancelled_during_its_inference_does_not_disturb_the_others(
    engine: FakeEngine, batcher: Batcher
) -> None:
    running = await keep_busy(engine, batcher)
    running.cancel()
    engine.allowed.set()

    assert (await batcher.submit(clip(1), FAR)).outputs.probabilities.tolist() == [1]


async def test_a_clip_whose_deadline_passed_costs_no_inference(engine: FakeEngine, batcher: Batcher) -> None:
    await keep_busy(engine, batcher)
    late, punctual = submit(batcher, 1, time.monotonic()), submit(batcher, 2)
    await until(lambda: batcher.depth == 2)
    engine.allowed.set()

    with pytest.raises(DeadlineExceeded):
        await late
    await punctual
    assert engine.batches == [[99], [2]]


async def test_a_failed_batch_fails_only_its_own_clips(engine: FakeEngine, batcher: Batcher) -> None:
    await keep_busy(engine, batcher)
    bad, unlucky = submit(batcher, 255), submit(batcher, 1)
    await until(lambda: batcher.depth == 2)
    engine.allowed.set()

    for task in (bad, unlucky):
        with pytest.raises(ValueError, match="engine failed"):
            await task
    assert (await batcher.submit(clip(2), FAR)).outputs.probabilities.tolist() == [2]


async def test_a_clip_whose_outputs_are_not_finite_fails_alone(engine: FakeEngine) -> None:
    failures: list[None] = []

    def infer(clips: Sequence[npt.NDArray[np.uint8]]) -> Outputs:
        outputs = engine(clips)
        outputs.probabilities[outputs.probabilities == 3] = np.nan
        return outputs

    def warm_up() -> None:
        assert not engine.batches  # a clip of a stranger must not make the engine warm up again

    batcher = Batcher(infer, batch_sizes=(4,), warm_up=warm_up, on_failure=lambda: failures.append(None))
    first = await keep_busy(engine, batcher)
    tasks = [submit(batcher, number) for number in (1, 3, 2)]
    await until(lambda: batcher.depth == 3)
    engine.allowed.set()
    answers = await asyncio.gather(first, *tasks, return_exceptions=True)
    await asyncio.to_thread(batcher.close)

    assert [type(answer) for answer in answers] == [Inference, Inference, EngineError, Inference]
    assert len(failures) == 1


async def test_a_batch_with_too_few_answers_fails_those_that_have_none(
    engine: FakeEngine,
) -> None:
    batcher = Batcher(lambda clips: engine(clips[:2]), batch_sizes=(4,))
    first = await keep_busy(engine, batcher)
    tasks = [submit(batcher, number) for number in (1, 2, 3, 4)]
    await until(lambda: batcher.depth == 4)
    engine.allowed.set()
    async with asyncio.timeout(30):
        answers = await asyncio.gather(first, *tasks, return_exceptions=True)

    assert [type(answer) for answer in answers] == [Inference, Inference, Inference, IndexError, IndexError]
    assert (await batcher.submit(clip(5), FAR)).outputs.probabilities.tolist() == [5]
    await asyncio.to_thread(batcher.close)


async def test_a_clip_cancelled_just_before_its_batch_begins_does_not_disturb_the_others(
    engine: FakeEngine, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batcher, "_forget", lambda *_: None)  # as if the engine's thread were quicker
    await keep_busy(engine, batcher)
    unwanted, wanted = submit(batcher, 1), submit(batcher, 2)
    await until(lambda: batcher.depth == 2)
    unwanted.cancel()
    await until(unwanted.done)
    engine.allowed.set()

    assert (await wanted).outputs.probabilities.tolist() == [2]
    assert engine.batches == [[99], [2]]


class Fragile:
    """Warms up, and counts failures. Warming up fails while ``broken`` is set."""

    def __init__(self) -> None:
        self.broken = False
        self.warmed_up = 0
        self.failures = 0
        self.threads: set[int] = set()

    def warm_up(self) -> None:
        self.warmed_up += 1
        self.threads.add(threading.get_ident())
        if self.broken:
            raise ValueError("still broken")

    def fail(self) -> None:
        self.failures += 1

    def batcher(self, engine: FakeEngine) -> Batcher:
        return Batcher(engine, batch_sizes=(1,), warm_up=self.warm_up, on_failure=self.fail)


async def test_after_a_failed_batch_the_engine_warms_up_again_and_goes_on(engine: FakeEngine) -> None:
    fragile = Fragile()
    batcher = fragile.batcher(engine)
    bad, good = submit(batcher, 255), submit(batcher, 1)

    with pytest.raises(ValueError, match="the engine failed"):
        await bad
    assert (await good).outputs.probabilities.tolist() == [1]
    assert batcher.alive
    assert (fragile.warmed_up, fragile.failures, len(fragile.threads)) == (2, 1, 1)
    await asyncio.to_thread(batcher.close)


async def test_an_engine_that_cannot_warm_up_after_a_failed_batch_is_dead(engine: FakeEngine) -> None:
    fragile = Fragile()
    batcher = fragile.batcher(engine)
    running = await keep_busy(engine, batcher, 255)
    waiting = submit(batcher, 1)
    await until(lambda: batcher.depth == 1)
    fragile.broken = True
    engine.allowed.set()

    with pytest.raises(ValueError, match="the engine failed"):
        await running
    with pytest.raises(EngineStopped):
        await asyncio.wait_for(waiting, 30)
    assert not batcher.alive
    assert (fragile.warmed_up, fragile.failures) == (2, 1)


async def test_if_the_engine_thread_dies_all_waiting_and_later_clips_fail(engine: FakeEngine, batcher: Batcher) -> None:
    engine.death = SystemExit()
    running = await keep_busy(engine, batcher)
    waiting = submit(batcher, 1)
    await until(lambda: batcher.depth == 1)
    engine.allowed.set()

    for task in (running, waiting):
        with pytest.raises(EngineStopped):
            await asyncio.wait_for(task, 30)
    await until(lambda: not batcher.alive)
    with pytest.raises(EngineStopped):
        await batcher.submit(clip(2), FAR)


async def test_closing_answers_accepted_clips_and_refuses_new_ones(engine: FakeEngine, batcher: Batcher) -> None:
    running = await keep_busy(engine, batcher)
    accepted = [submit(batcher, number) for number in (1, 2, 3, 4, 5)]
    await until(lambda: batcher.depth == 5)
    closing = asyncio.create_task(asyncio.to_thread(batcher.close))
    await until(lambda: not batcher.alive)

    with pytest.raises(EngineStopped):
        await batcher.submit(clip(6), FAR)
    engine.allowed.set()
    await closing

    answers = [task.result().outputs.probabilities.tolist() for task in (running, *accepted)]
    assert answers == [[99], [1], [2], [3], [4], [5]]


async def test_on_run_is_called_for_clips_that_the_engine_has_run_even_if_they_fail_or_nobody_waits(
    engine: FakeEngine, batcher: Batcher
) -> None:
    ran: list[int] = []

    def submit_noting(number: int, deadline: float = FAR) -> asyncio.Task[Inference]:
        return asyncio.create_task(batcher.submit(clip(number), deadline, lambda: ran.append(number)))

    engine.allowed.clear()
    abandoned = submit_noting(1)
    await until(lambda: engine.batches == [[1]])
    withdrawn, expired, failing = submit_noting(2), submit_noting(3, time.monotonic()), submit_noting(255)
    await until(lambda: batcher.depth == 3)
    abandoned.cancel()
    withdrawn.cancel()
    await asyncio.wait([abandoned, withdrawn])
    engine.allowed.set()
    results = await asyncio.gather(expired, failing, return_exceptions=True)

    assert ran == [1, 255]
    assert [type(result) for result in results] == [DeadlineExceeded, ValueError]
