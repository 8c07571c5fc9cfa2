"""One request's way: the bytes of a clip → 40 frames → a place in a batch → a `Prediction`.

The only door to `service.video` and `service.model` for those who serve predictions: what they need of either is
re-exported here.
"""

import asyncio
import time
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from service.metrics import Metrics
from service.model.batcher import Batcher, DeadlineExceeded, Overloaded
from service.model.bundle import Bundle, Manifest, load_bundle
from service.model.engine import Engine
from service.model.spec import CudaOptions
from service.video.decoder import ClipFacts, DecodedClip, DecodeLimits, SampledFrame
from service.video.decoders import Decoders, start_decoders
from service.video.errors import ClipError

__all__ = [
    "ClipError",
    "CudaOptions",
    "DeadlineExceeded",
    "DecodeLimits",
    "Engine",
    "Manifest",
    "Overloaded",
    "Pipeline",
    "Prediction",
    "StageTimes",
    "load_bundle",
    "start_decoders",
]


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds that one clip spent waiting for a decoder, being decoded, waiting for the engine, and in its batch."""

    decode_wait: float
    decode: float
    queue: float
    inference: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one clip: probabilities (classes,), attention (40, 7, 7) or None, and the facts around them."""

    clip: ClipFacts
    sampled: tuple[SampledFrame, ...]
    probabilities: npt.NDArray[np.float32]
    attention: npt.NDArray[np.float32] | None
    seconds: StageTimes


class Pipeline:
    """Answers clips, several at a time, until closed, which closes the decoders, too.

    `decode_workers` clips are decoded at a time; `max_queue` clips may wait, for a decoder or for the engine, besides
    the batch being worked on. The constructor warms the engine up, which takes seconds, and raises EngineError where
    that fails. Belongs to one event loop.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        decoders: Decoders,
        metrics: Metrics,
        *,
        decode_workers: int,
        max_queue: int,
    ) -> None:
        self.manifest = bundle.manifest
        self.precision: str = engine.precision
        self.provider = engine.provider
        self._decoders = decoders
        self._metrics = metrics
        self._capacity = max_queue + max(engine.batch_sizes)
        self._admitted = 0
        self._decoder_free = asyncio.Semaphore(decode_workers)
        self._batcher = Batcher(
            engine.run,
            batch_sizes=engine.batch_sizes,
            max_waiting=self._capacity,
            warm_up=engine.warm_up,
            on_batch=metrics.batch_size.observe,
        )
        self._waiting_for_decoder = metrics.queue_depth.labels("decode")
        metrics.queue_depth.labels("inference").set_function(lambda: self._batcher.depth)
        for layer, granted in asdict(decoders.grants).items():
            metrics.sandbox.labels(layer).set(bool(granted))

    @property
    def alive(self) -> bool:
        """Whether predictions can still be made."""
        return self._batcher.alive

    async def predict(self, data: bytes, *, deadline: float) -> Prediction:
        """Decode and classify one clip. `deadline` is on the clock of `time.monotonic()`.

        Cancelling gives the clip up: its decoder is killed, and it costs no inference unless that has begun. Raises
        ClipError where the clip is at fault, Overloaded, DeadlineExceeded, the batcher's EngineStopped, DecodersError.
        """
        if self._admitted >= self._capacity:
            raise Overloaded(f"{self._admitted} clips are waiting or being worked on, no more are accepted")
        self._admitted += 1
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await self._predict(data, deadline)
        except TimeoutError as error:
            raise DeadlineExceeded("the answer was not ready in time") from error
        finally:
            self._admitted -= 1

    def close(self) -> None:
        """Give up what is being decoded, finish what waits for the engine. Blocks until that is done."""
        self._decoders.close()
        self._batcher.close()

    async def _predict(self, data: bytes, deadline: float) -> Prediction:
        clip, decode_wait, decode = await self._decode(data)
        answer = await self._batcher.submit(clip.frames, deadline)
        seconds = StageTimes(decode_wait, decode, answer.queue_s, answer.inference_s)
        self._metrics.stage_seconds.labels("queue").observe(seconds.queue)
        self._metrics.stage_seconds.labels("inference").observe(seconds.inference)
        return Prediction(clip.facts, clip.sampled, answer.probabilities, answer.attention, seconds)

    async def _decode(self, data: bytes) -> tuple[DecodedClip, float, float]:
        """The clip's frames, with the seconds it waited for a decoder and those that decoding took."""
        arrived = time.monotonic()
        with self._waiting_for_decoder.track_inprogress():
            await self._decoder_free.acquire()
        try:
            started = time.monotonic()
            self._metrics.stage_seconds.labels("decode_wait").observe(started - arrived)
            clip = await self._decoders.decode(data)
        except ClipError as error:
            self._metrics.decoder_failures.labels(error.code).inc()
            raise
        finally:
            self._decoder_free.release()
        seconds = time.monotonic() - started
        self._metrics.stage_seconds.labels("decode").observe(seconds)
        self._metrics.clip_seconds.observe(clip.facts.duration_s)
        return clip, started - arrived, seconds
