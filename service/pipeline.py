"""The stages of one request: decode the clip, encode its frames as JPEGs if the client wants them, classify it."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from service.admission import Admission
from service.errors import ClipError, DeadlineExceeded
from service.isolation.clip_file import ClipFile
from service.isolation.processes import DecoderProcesses
from service.metrics import Metrics
from service.model.batcher import Inference
from service.model.bundle import Outputs
from service.model.model import Model
from service.threads import run_alone
from service.video.decoder import ClipFacts, DecodedClip, SampledFrame
from service.video.jpeg import frame_jpegs

STAGES = ("receive", "decode_wait", "decode", "encode", "queue", "inference")


@dataclass(slots=True)
class Stages:
    """Seconds that one request spent in each stage; ``None`` for a stage that it did not enter.

    Attributes:
        receive: Receiving the request's body.
        decode_wait: Waiting for a free decoder.
        decode: Decoding the clip.
        encode: Encoding the sampled frames as JPEGs; only for requests that ask for them.
        queue: Waiting for the engine.
        inference: Running the network.
        began: When each stage began, on the clock of ``time.monotonic()``, in order.
        exemplar: The label that refers to the request's trace in the metrics, if the trace is sampled.
    """

    receive: float | None = None
    decode_wait: float | None = None
    decode: float | None = None
    encode: float | None = None
    queue: float | None = None
    inference: float | None = None
    began: dict[str, float] = field(default_factory=dict)
    exemplar: dict[str, str] | None = None

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measure the body of a ``with`` statement as this stage, whether or not the body raises."""
        self.began[stage] = time.monotonic()
        try:
            yield
        finally:
            setattr(self, stage, time.monotonic() - self.began[stage])

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage that was entered, in order."""
        entered = ((stage, getattr(self, stage)) for stage in STAGES)
        return {stage: seconds for stage, seconds in entered if seconds is not None}

    def milliseconds(self) -> dict[str, float]:
        """Return the milliseconds of each stage that was entered, in order, rounded to microseconds."""
        return {stage: round(1000 * seconds, 3) for stage, seconds in self.seconds().items()}


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one clip.

    Attributes:
        model: The model that answered.
        clip: Facts about the clip.
        sampled: The sampled frames' positions in the clip, one for each frame that the network saw.
        outputs: Probabilities float32 ``(classes,)`` and attention float32 ``(40, 7, 7)`` or ``None``.
        jpegs: The sampled frames as small JPEGs, or ``None`` if they were not asked for.
        frames: The sampled frames, uint8 ``(40, 224, 224, 3)``, RGB, or ``None`` if they were not asked for.
    """

    model: Model
    clip: ClipFacts
    sampled: tuple[SampledFrame, ...]
    outputs: Outputs
    jpegs: tuple[bytes, ...] | None = None
    frames: npt.NDArray[np.uint8] | None = None


class Pipeline:
    """Answers clips, several at a time, until it is closed. Use it from one event loop only.

    A clip that is being decoded, encoded or classified, or waits for that, takes one place. There are as many places
    as the model has capacity. The pipeline owns the model and the decoders: closing it closes them.

    Args:
        model: The model that classifies clips.
        decoders: Where clips are decoded.
        metrics: Where stages, queues and failures are counted.
        decode_workers: Number of clips that are decoded at a time.
    """

    def __init__(self, model: Model, decoders: DecoderProcesses, metrics: Metrics, *, decode_workers: int) -> None:
        self.model = model
        self._decoders = decoders
        self._metrics = metrics
        self._admission = Admission(model.capacity)
        self._decoder_free = asyncio.Semaphore(decode_workers)
        self._encoder_free = asyncio.Semaphore(1)  # encoding holds the interpreter lock: two would stall the event loop
        self._waiting_for_decoder = metrics.queue_depth.labels("decode")
        metrics.queue_depth.labels("inference").set_function(lambda: self.model.depth)
        metrics.admitted_clips.set_function(lambda: self._admission.inside)
        metrics.capacity_clips.set_function(lambda: self._admission.capacity)
        for layer, granted in asdict(decoders.grants).items():
            metrics.sandbox.labels(layer).set(bool(granted))
        metrics.decoders_available.set_function(lambda: decoders.problem is None)

    @property
    def alive(self) -> bool:
        """Whether clips can still be answered."""
        return self.model.alive

    @property
    def decoders_problem(self) -> str | None:
        """Why no clip can be decoded at the moment; ``None`` if clips can be decoded."""
        return self._decoders.problem

    def check_admission(self, deadline: float) -> None:
        """Check whether ``predict`` would admit a clip now.

        Args:
            deadline: When the answer is due, on the clock of ``time.monotonic()``.

        Raises:
            Overloaded: It would not.
        """
        self._admission.check(deadline)

    async def predict(
        self,
        clip: bytes | ClipFile,
        *,
        deadline: float,
        stages: Stages | None = None,
        jpegs: bool = False,
        frames: bool = False,
    ) -> Prediction:
        """Decode and classify one clip.

        Cancelling kills the clip's decoder, and takes the clip out of the engine's queue unless its batch has begun.

        Args:
            clip: The video file.
            deadline: When the answer is due, on the clock of ``time.monotonic()``.
            stages: Filled in as the clip passes each stage, even if a later stage fails.
            jpegs: Whether to return the sampled frames as JPEGs.
            frames: Whether to return the sampled frames as an array.

        Raises:
            ClipError: The clip cannot be decoded.
            Overloaded: No place is free, or the answer would not be ready in time.
            DeadlineExceeded: The answer was not ready in time.
            EngineStopped: The engine has died.
            DecodersError: No decoder process can be started, or they did not answer.
        """
        stages = stages or Stages()
        async with self._place(deadline) as on_run:
            decoded = await self._decode(clip, stages)
            pictures = await self._encode(decoded, stages) if jpegs else None
            model, facts, sampled = self.model, decoded.facts, decoded.sampled
            kept = decoded.frames if frames else None
            answering = model.answer(decoded.frames, deadline, on_run)
            del decoded  # unless the frames are kept, the engine's thread is now the last to hold them, and frees them
            with stages.timed("queue"):
                answer = await answering
        self._record(stages, answer.queue_s, answer.inference_s)
        return Prediction(model, facts, sampled, answer.outputs, pictures, kept)

    async def infer(
        self, model: Model, frames: npt.NDArray[np.uint8], *, deadline: float, stages: Stages | None = None
    ) -> Outputs:
        """Classify clips that are decoded already. If one fails, all fail.

        ``stages.queue`` is the time until the first clip's batch began, ``stages.inference`` the time from then to the
        last answer. Deadline, cancelling and errors are those of ``predict``, except for ``ClipError`` and
        ``DecodersError``.

        Args:
            model: The model that classifies them; the caller holds it (``Model.held``).
            frames: uint8 ``(n, 40, 224, 224, 3)``, RGB, with n from 1 to the model's capacity.
            deadline: When the answer is due, on the clock of ``time.monotonic()``.
            stages: Filled in as the clips pass each stage.

        Returns:
            Probabilities float32 ``(n, classes)`` and attention float32 ``(n, 40, 7, 7)`` or ``None``.
        """
        stages = stages or Stages()
        async with self._place(deadline, len(frames)) as on_run:
            with stages.timed("queue"):
                answers = await _answer_all(model, frames, deadline, on_run)
        queue_s = min(answer.queue_s for answer in answers)
        self._record(stages, queue_s, max(answer.queue_s + answer.inference_s for answer in answers) - queue_s)
        return Outputs.stack([answer.outputs for answer in answers])

    async def replace(self, model: Model) -> None:
        """Answer with another model from now on. Returns when the old one has answered its clips and is closed."""
        old, self.model = self.model, model
        self._admission.capacity = model.capacity
        await old.close_when_free()

    def close(self) -> None:
        """Kill the decoders, answer the clips that wait for the engine, then stop. Blocks until that is done."""
        self._decoders.close()
        self.model.close()

    @contextlib.asynccontextmanager
    async def _place(self, deadline: float, clips: int = 1) -> AsyncIterator[Callable[[], Any]]:
        """Hold places for this many clips, at most until the deadline.

        Returns:
            The function that the engine's thread calls for each clip that it has run.
        """
        loop = asyncio.get_running_loop()
        with self._admission.place(deadline, clips) as learn:

            def on_run() -> None:
                with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                    loop.call_soon_threadsafe(learn)

            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    yield on_run
            except TimeoutError as error:
                raise DeadlineExceeded("the answer was not ready in time") from error

    async def _decode(self, clip: bytes | ClipFile, stages: Stages) -> DecodedClip:
        """Decode one clip as soon as a decoder is free."""
        with self._waiting_for_decoder.track_inprogress(), stages.timed("decode_wait"):
            await self._decoder_free.acquire()
        try:
            self._observe(stages, "decode_wait")
            with stages.timed("decode"):
                decoded = await self._decoders.decode(clip)
        except ClipError as error:
            self._metrics.decoder_failures.labels(error.code).inc()
            raise
        finally:
            self._decoder_free.release()
        self._observe(stages, "decode")
        self._metrics.clip_seconds.observe(decoded.facts.duration_s)
        return decoded

    async def _encode(self, decoded: DecodedClip, stages: Stages) -> tuple[bytes, ...]:
        """Encode the sampled frames. Call it before the engine gets them, because the engine frees them."""
        with stages.timed("encode"):
            encode = functools.partial(frame_jpegs, decoded.frames, decoded.sampled)
            pictures = await run_alone(self._encoder_free, encode)
        self._observe(stages, "encode")
        return pictures

    def _record(self, stages: Stages, queue_s: float, inference_s: float) -> None:
        """Fill in the engine's stages, and count them."""
        stages.queue, stages.inference = queue_s, inference_s
        self._metrics.last_inference.set_to_current_time()
        stages.began["inference"] = stages.began["queue"] + queue_s
        self._observe(stages, "queue")
        self._observe(stages, "inference")

    def _observe(self, stages: Stages, stage: str) -> None:
        self._metrics.stage_seconds.labels(stage).observe(getattr(stages, stage), stages.exemplar)


async def _answer_all(
    model: Model, frames: npt.NDArray[np.uint8], deadline: float, on_run: Callable[[], Any]
) -> list[Inference]:
    """Classify each clip; if one fails, cancel the others."""
    tasks = [asyncio.create_task(model.answer(clip, deadline, on_run)) for clip in frames]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
