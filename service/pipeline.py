"""One request's way: the bytes of a clip → 40 frames → a place in a batch → a `Prediction`.

The only door to `service.video` and `service.model` for those who serve predictions: what they need of either is
re-exported here.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.admission import Admission, Overloaded
from service.metrics import Metrics
from service.model.batcher import Batcher, DeadlineExceeded, Inference
from service.model.bundle import Bundle, Manifest, load_bundle
from service.model.engine import Engine
from service.model.spec import CudaOptions
from service.video.clip_file import ClipFile
from service.video.decoder import ClipFacts, DecodedClip, DecodeLimits, SampledFrame
from service.video.decoders import Decoders, start_decoders
from service.video.errors import ClipError
from service.video.jpeg import frame_jpegs
from service.video.rendering import render_clip

__all__ = [
    "ClipError",
    "ClipFile",
    "CudaOptions",
    "DeadlineExceeded",
    "DecodeLimits",
    "Engine",
    "Manifest",
    "Model",
    "Overloaded",
    "Pipeline",
    "Prediction",
    "Stages",
    "load_bundle",
    "render_clip",
    "start_decoders",
]

# Seconds that one clip spent in each stage, by its name: decode_wait, decode, encode (where JPEGs are wanted),
# queue, inference. Those that it reached are there also where it failed.
Stages = dict[str, float]


class Model:
    """A bundle's network at work in a thread of its own, until closed. `max_queue` clips may wait for it.

    The constructor warms the engine up, which takes seconds, and raises EngineError where that fails.
    """

    def __init__(self, bundle: Bundle, engine: Engine, metrics: Metrics, *, max_queue: int) -> None:
        self.manifest = bundle.manifest
        self.precision: str = engine.precision
        self.provider = engine.provider
        self.capacity = max_queue + max(engine.batch_sizes)
        self._batcher = Batcher(
            engine.run,
            batch_sizes=engine.batch_sizes,
            max_waiting=self.capacity,
            warm_up=engine.warm_up,
            on_batch=metrics.batch_size.observe,
        )
        self._holders = 0
        self._free = asyncio.Event()
        self._free.set()

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._batcher.alive

    @property
    def depth(self) -> int:
        """Clips that wait for it now."""
        return self._batcher.depth

    def answer(self, frames: npt.NDArray[np.uint8], deadline: float) -> Coroutine[Any, Any, Inference]:
        """See the batcher's `submit`."""
        return self._batcher.submit(frames, deadline)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep it from being closed when another takes its place. Belongs to one event loop."""
        self._holders += 1
        self._free.clear()
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._free.set()

    async def close_when_free(self) -> None:
        """Close it once nobody holds it."""
        await self._free.wait()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Finish what waits. Blocks until that is done."""
        self._batcher.close()


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one clip: probabilities (classes,), attention (40, 7, 7) or None, and the facts around them.

    `jpegs` are small pictures of the sampled frames, or None where not wanted.
    """

    model: Model
    clip: ClipFacts
    sampled: tuple[SampledFrame, ...]
    probabilities: npt.NDArray[np.float32]
    attention: npt.NDArray[np.float32] | None
    jpegs: tuple[bytes, ...] | None


@dataclass(frozen=True, slots=True)
class BatchInference:
    """The answer for n clips of one request: probabilities (n, classes), attention (n, 40, 7, 7) or None."""

    probabilities: npt.NDArray[np.float32]
    attention: npt.NDArray[np.float32] | None


class Pipeline:
    """Answers clips, several at a time, until closed, which closes the decoders and the model, too.

    `decode_workers` clips are decoded at a time; as many may be inside, waiting or being worked on, as the model has
    capacity. Belongs to one event loop.
    """

    def __init__(self, model: Model, decoders: Decoders, metrics: Metrics, *, decode_workers: int) -> None:
        self.model = model
        self._decoders = decoders
        self._metrics = metrics
        self._admission = Admission(model.capacity)
        self._decoder_free = asyncio.Semaphore(decode_workers)
        self._encoder_free = asyncio.Semaphore(1)  # more would only keep the event loop from the interpreter
        self._waiting_for_decoder = metrics.queue_depth.labels("decode")
        metrics.queue_depth.labels("inference").set_function(lambda: self.model.depth)
        metrics.admitted_clips.set_function(lambda: self._admission.inside)
        metrics.capacity_clips.set_function(lambda: self._admission.capacity)
        for layer, granted in asdict(decoders.grants).items():
            metrics.sandbox.labels(layer).set(bool(granted))

    @property
    def alive(self) -> bool:
        """Whether predictions can still be made."""
        return self.model.alive

    def check_admission(self, deadline: float) -> None:
        """Raises Overloaded where `predict` would now."""
        self._admission.check(deadline)

    async def predict(
        self, clip: bytes | ClipFile, *, deadline: float, stages: Stages | None = None, jpegs: bool = False
    ) -> Prediction:
        """Decode and classify one clip. `deadline` is on the clock of `time.monotonic()`; `stages` is filled.

        Cancelling gives the clip up: its decoder is killed, and it costs no inference unless that has begun. Raises
        ClipError where the clip is at fault, Overloaded, DeadlineExceeded, the batcher's EngineStopped, DecodersError.
        """
        stages = {} if stages is None else stages
        async with self._place(deadline):
            decoded = await self._decode(clip, stages)
            pictures = await self._encode(decoded, stages) if jpegs else None
            model, facts, sampled = self.model, decoded.facts, decoded.sampled
            answering = model.answer(decoded.frames, deadline)
            del decoded  # so that the engine's thread is the last to hold the frames, and frees them
            with _timed(stages, "queue"):
                answer = await answering
        self._note(stages, answer.queue_s, answer.inference_s)
        return Prediction(model, facts, sampled, answer.probabilities, answer.attention, pictures)

    async def infer(
        self, model: Model, frames: npt.NDArray[np.uint8], *, deadline: float, stages: Stages | None = None
    ) -> BatchInference:
        """Classify clips that are decoded already: frames uint8 (n, 40, 224, 224, 3), RGB, n from 1 to the capacity.

        By `model`, which the caller holds; all of them, or none. Deadline, stages, cancelling and errors as in
        `predict`; queue are the seconds until the first of them was worked on, inference those from then to the last's
        answer.
        """
        stages = {} if stages is None else stages
        async with self._place(deadline, len(frames)):
            with _timed(stages, "queue"):
                answers = await _answer_all(model, frames, deadline)
        queue_s = min(answer.queue_s for answer in answers)
        self._note(stages, queue_s, max(answer.queue_s + answer.inference_s for answer in answers) - queue_s)
        maps = [answer.attention for answer in answers if answer.attention is not None]
        probabilities = np.stack([answer.probabilities for answer in answers])
        return BatchInference(probabilities, np.stack(maps) if maps else None)

    async def replace(self, model: Model) -> None:
        """Answer with this model from now on. Returns when the one before has finished what it has, and is closed."""
        before, self.model = self.model, model
        self._admission.capacity = model.capacity
        await before.close_when_free()

    def close(self) -> None:
        """Give up what is being decoded, finish what waits for the engine. Blocks until that is done."""
        self._decoders.close()
        self.model.close()

    @contextlib.asynccontextmanager
    async def _place(self, deadline: float, clips: int = 1) -> AsyncIterator[None]:
        """Places for so many clips, until the deadline."""
        with self._admission.place(deadline, clips):
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    yield
            except TimeoutError as error:
                raise DeadlineExceeded("the answer was not ready in time") from error

    def _note(self, stages: Stages, queue_s: float, inference_s: float) -> None:
        for stage, seconds in (("queue", queue_s), ("inference", inference_s)):
            stages[stage] = seconds
            self._metrics.stage_seconds.labels(stage).observe(seconds)

    async def _decode(self, clip: bytes | ClipFile, stages: Stages) -> DecodedClip:
        with self._waiting_for_decoder.track_inprogress(), _timed(stages, "decode_wait"):
            await self._decoder_free.acquire()
        try:
            self._metrics.stage_seconds.labels("decode_wait").observe(stages["decode_wait"])
            with _timed(stages, "decode"):
                decoded = await self._decoders.decode(clip)
        except ClipError as error:
            self._metrics.decoder_failures.labels(error.code).inc()
            raise
        finally:
            self._decoder_free.release()
        self._metrics.stage_seconds.labels("decode").observe(stages["decode"])
        self._metrics.clip_seconds.observe(decoded.facts.duration_s)
        return decoded

    async def _encode(self, decoded: DecodedClip, stages: Stages) -> tuple[bytes, ...]:
        """The JPEGs, made before the engine has the frames: it frees them when it has answered."""
        with _timed(stages, "encode"):
            async with self._encoder_free:
                pictures = await asyncio.to_thread(frame_jpegs, decoded.frames, decoded.sampled)
        self._metrics.stage_seconds.labels("encode").observe(stages["encode"])
        return pictures


async def _answer_all(model: Model, frames: npt.NDArray[np.uint8], deadline: float) -> list[Inference]:
    """Each clip's answer; where one fails the others are given up."""
    tasks = [asyncio.create_task(model.answer(clip, deadline)) for clip in frames]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


@contextlib.contextmanager
def _timed(stages: Stages, stage: str) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        stages[stage] = time.monotonic() - started
