"""``Pipeline`` with a tiny network and real decoder processes."""

import asyncio
import contextlib
import gc
import math
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from service.assembly import load_decoders, load_model
from service.errors import DeadlineExceeded, DecodersError, EngineStopped, Overloaded, UnsupportedMedia
from service.isolation.clip_file import ClipFile
from service.isolation.processes import DecoderProcesses
from service.metrics import Metrics
from service.model.bundle import Outputs
from service.model.engine import Engine
from service.pipeline import Pipeline, Stages
from service.settings import Settings
from service.video.decoder import DecodeLimits, decode_clip
from tests.processes import decoders as decoders_of
from tests.processes import until
from tests.service.isolation.hostile import take_over
from tests.tiny_bundle import LABELS, write_tiny_bundle

pytestmark = pytest.mark.anyio

NEVER = math.inf
NO_VIDEO = b"no video " * 100
ENDLESS = take_over("while True: pass")  # a clip that `hostile` decoders never finish
REPOSITORY = Path(__file__).resolve().parents[2]


class Gate:
    """Holds every inference while it is closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.open.set()
        self.begun = 0
        run = Engine.run

        def gated(engine: Engine, clips: Sequence[npt.NDArray[np.uint8]]) -> Outputs:
            self.begun += 1
            assert self.open.wait(60)
            return run(engine, clips)

        monkeypatch.setattr(Engine, "run", gated)

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        self.open.clear()
        try:
            yield
        finally:
            self.open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecoderProcesses]:
    with contextlib.closing(load_decoders(Settings(), Metrics())) as decoders:
        yield decoders


@pytest.fixture(scope="module")
def hostile() -> Iterator[DecoderProcesses]:
    """Decoders that a clip can take over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        hostile = DecoderProcesses(
            DecodeLimits(timeout_s=300), memory_bytes=2**30, program="tests.service.isolation.hostile"
        )
        with contextlib.closing(hostile):
            yield hostile


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


Start = Callable[..., Pipeline]


@pytest.fixture
def start(tiny_bundle: Path, decoders: DecoderProcesses, metrics: Metrics) -> Iterator[Start]:
    """Build a pipeline whose decoders stay alive after the test, because they are shared."""
    with contextlib.ExitStack() as opened:

        def start(decoders: DecoderProcesses = decoders, *, decode_workers: int = 2, **settings: Any) -> Pipeline:
            model = load_model(Settings(bundle=tiny_bundle, device="cpu", **settings), metrics)
            opened.callback(model.close)
            return Pipeline(model, decoders, metrics, decode_workers=decode_workers)

        yield start


@contextlib.asynccontextmanager
async def running(*coroutines: Any) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Run coroutines as tasks, and cancel those that have not ended in the end."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def eventually(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(until, condition)


def decoding() -> list[int]:
    """The processes of this test that are decoding a clip."""
    return decoders_of(os.getpid())


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"limelight_{name}", labels) or 0.0


def frames_of(clips: int) -> npt.NDArray[np.uint8]:
    shape = (clips, 40, 224, 224, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


class TestPredict:
    async def test_returns_the_networks_outputs_for_the_sampled_frames(self, start: Start, clip: bytes) -> None:
        pipeline = start()
        prediction = await pipeline.predict(clip, deadline=NEVER)

        decoded = decode_clip(clip)
        expected = await pipeline.infer(pipeline.model, decoded.frames[None], deadline=NEVER)
        assert prediction.model is pipeline.model
        assert (prediction.clip, prediction.sampled) == (decoded.facts, decoded.sampled)
        assert prediction.outputs.probabilities.shape == (len(LABELS),)
        assert prediction.outputs.probabilities.dtype == np.float32
        assert prediction.outputs.probabilities.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(prediction.outputs.probabilities, expected.probabilities[0], atol=1e-6)
        assert prediction.outputs.attention is not None
        assert expected.attention is not None
        assert prediction.outputs.attention.shape == (40, 7, 7)
        np.testing.assert_allclose(prediction.outputs.attention, expected.attention[0], atol=1e-6)

    async def test_takes_a_clip_file_as_well_as_bytes(self, start: Start, clip: bytes) -> None:
        pipeline = start()
        with ClipFile() as file:
            file.write(clip)
            prediction = await pipeline.predict(file, deadline=NEVER)

        assert prediction.clip == decode_clip(clip).facts

    async def test_a_network_without_attention_returns_none(
        self, start: Start, tmp_path: Path, clip: bytes, metrics: Metrics
    ) -> None:
        pipeline = start()
        bundle = write_tiny_bundle(tmp_path, variant="base")
        base = load_model(Settings(bundle=bundle, device="cpu"), metrics)
        with contextlib.closing(base):
            await pipeline.replace(base)

            assert (await pipeline.predict(clip, deadline=NEVER)).outputs.attention is None

    async def test_fills_in_the_stages_in_order(self, start: Start, clip: bytes, metrics: Metrics) -> None:
        stages = Stages(receive=0.5)
        started = time.monotonic()
        await start().predict(clip, deadline=NEVER, stages=stages, jpegs=True)
        elapsed = time.monotonic() - started

        assert list(stages.milliseconds()) == ["receive", "decode_wait", "decode", "encode", "queue", "inference"]
        assert sum(stages.milliseconds().values()) <= 1000 * (0.5 + elapsed) + 1
        for stage in ("decode_wait", "decode", "encode", "queue", "inference"):
            assert sample(metrics, "stage_seconds_count", stage=stage) == 1
        assert sample(metrics, "stage_seconds_count", stage="receive") == 0  # counted by the HTTP layer
        assert sample(metrics, "clip_seconds_sum") == pytest.approx(2)

    async def test_encodes_jpegs_only_on_request(self, start: Start, clip: bytes) -> None:
        pipeline, stages = start(), Stages()
        with_jpegs = await pipeline.predict(clip, deadline=NEVER, jpegs=True)
        without = await pipeline.predict(clip, deadline=NEVER, stages=stages)

        assert with_jpegs.jpegs is not None
        assert len(with_jpegs.jpegs) == 40
        assert all(jpeg.startswith(b"\xff\xd8") for jpeg in with_jpegs.jpegs)
        assert without.jpegs is None
        assert stages.encode is None

    async def test_returns_frames_only_on_request(self, start: Start, clip: bytes) -> None:
        pipeline = start()
        with_frames = await pipeline.predict(clip, deadline=NEVER, frames=True)
        without = await pipeline.predict(clip, deadline=NEVER)

        assert with_frames.frames is not None
        assert (with_frames.frames == decode_clip(clip).frames).all()
        assert without.frames is None


class TestClipErrors:
    async def test_a_clip_that_cannot_be_decoded_is_refused_and_counted(self, start: Start, metrics: Metrics) -> None:
        stages = Stages()
        with pytest.raises(UnsupportedMedia):
            await start().predict(NO_VIDEO, deadline=NEVER, stages=stages)

        assert sample(metrics, "decoder_failures_total", reason="unsupported_media") == 1
        assert list(stages.milliseconds()) == ["decode_wait", "decode"]
        assert sample(metrics, "batch_size_count") == 0

    async def test_a_refused_clip_frees_its_place_and_its_decoder(
        self, start: Start, clip: bytes, metrics: Metrics
    ) -> None:
        pipeline = start(decode_workers=1, max_queue=0)
        with pytest.raises(UnsupportedMedia):
            await pipeline.predict(NO_VIDEO, deadline=NEVER)

        assert sample(metrics, "admitted_clips") == 0
        await pipeline.predict(clip, deadline=NEVER)


class TestOverload:
    async def test_a_clip_beyond_the_capacity_is_refused(
        self, start: Start, gate: Gate, clip: bytes, metrics: Metrics
    ) -> None:
        pipeline = start(max_queue=1)
        async with running(*(pipeline.predict(clip, deadline=NEVER) for _ in range(2))) as accepted:
            with gate.closed():
                await eventually(lambda: gate.begun == 1 and pipeline.model.depth == 1)
                assert sample(metrics, "admitted_clips") == sample(metrics, "capacity_clips") == 2
                with pytest.raises(Overloaded):
                    pipeline.check_admission(NEVER)
                with pytest.raises(Overloaded):
                    await pipeline.predict(clip, deadline=NEVER)
            await asyncio.gather(*accepted)

        pipeline.check_admission(NEVER)
        assert sample(metrics, "admitted_clips") == 0

    async def test_more_tensors_than_places_are_refused_together(self, start: Start, metrics: Metrics) -> None:
        pipeline = start(max_queue=1)
        with pytest.raises(Overloaded):
            await pipeline.infer(pipeline.model, frames_of(3), deadline=NEVER)

        assert sample(metrics, "batch_size_count") == 0


class TestDeadline:
    async def test_that_passes_while_the_clip_is_decoded_kills_its_decoder(
        self, start: Start, hostile: DecoderProcesses, metrics: Metrics
    ) -> None:
        pipeline, stages = start(hostile), Stages()
        with pytest.raises(DeadlineExceeded):
            await pipeline.predict(ENDLESS, deadline=time.monotonic() + 0.2, stages=stages)

        assert list(stages.milliseconds()) == ["decode_wait", "decode"]
        assert sample(metrics, "admitted_clips") == 0
        await eventually(lambda: decoding() == [])

    async def test_that_passes_while_the_clip_waits_for_a_decoder_leaves_no_trace(
        self, start: Start, hostile: DecoderProcesses, clip: bytes, metrics: Metrics
    ) -> None:
        pipeline, stages = start(hostile, decode_workers=1), Stages()
        async with running(pipeline.predict(ENDLESS, deadline=NEVER)):
            await eventually(decoding)
            with pytest.raises(DeadlineExceeded):
                await pipeline.predict(clip, deadline=time.monotonic() + 0.05, stages=stages)
            assert sample(metrics, "queue_depth", queue="decode") == 0

        assert list(stages.milliseconds()) == ["decode_wait"]

    async def test_that_passes_while_the_clip_waits_for_the_engine_costs_no_inference(
        self, start: Start, gate: Gate, metrics: Metrics
    ) -> None:
        pipeline, clips = start(), frames_of(1)
        async with running(pipeline.infer(pipeline.model, clips, deadline=NEVER)) as (first,):
            with gate.closed():
                await eventually(lambda: gate.begun == 1)
                with pytest.raises(DeadlineExceeded):
                    await pipeline.infer(pipeline.model, clips, deadline=time.monotonic() + 0.05)
                assert pipeline.model.depth == 0
            await first

        assert sample(metrics, "batch_size_sum") == 1


class TestCancelling:
    async def test_while_decoding_frees_the_place_and_kills_the_decoder(
        self, start: Start, hostile: DecoderProcesses, clip: bytes, metrics: Metrics
    ) -> None:
        pipeline = start(hostile, decode_workers=1, max_queue=0)
        async with running(pipeline.predict(ENDLESS, deadline=NEVER)):
            await eventually(decoding)

        assert sample(metrics, "admitted_clips") == 0
        await eventually(lambda: decoding() == [])
        await pipeline.predict(clip, deadline=NEVER)

    async def test_while_queued_takes_the_clip_out_of_the_queue(
        self, start: Start, gate: Gate, clip: bytes, metrics: Metrics
    ) -> None:
        pipeline = start()
        async with running(pipeline.infer(pipeline.model, frames_of(1), deadline=NEVER)) as (first,):
            with gate.closed():
                await eventually(lambda: gate.begun == 1)
                async with running(pipeline.predict(clip, deadline=NEVER)):
                    await eventually(lambda: pipeline.model.depth == 1)
                assert pipeline.model.depth == 0
                assert sample(metrics, "admitted_clips") == 1
            await first

        assert sample(metrics, "batch_size_sum") == 1


class TestInfer:
    async def test_returns_one_row_for_each_clip(self, start: Start) -> None:
        pipeline, clips = start(), frames_of(3)
        together = await pipeline.infer(pipeline.model, clips, deadline=NEVER)
        alone = [await pipeline.infer(pipeline.model, clip[None], deadline=NEVER) for clip in clips]

        assert together.probabilities.shape == (3, len(LABELS))
        assert together.attention is not None
        assert together.attention.shape == (3, 40, 7, 7)
        for row, single in enumerate(alone):
            np.testing.assert_allclose(together.probabilities[row], single.probabilities[0], atol=1e-6)

    async def test_fills_in_only_the_engines_stages(self, start: Start, metrics: Metrics) -> None:
        pipeline, stages = start(), Stages()
        await pipeline.infer(pipeline.model, frames_of(2), deadline=NEVER, stages=stages)

        assert list(stages.milliseconds()) == ["queue", "inference"]
        assert sample(metrics, "stage_seconds_count", stage="inference") == 1

    async def test_if_one_clip_fails_the_others_are_not_computed(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun, raised = [], threading.Event()

        def fail(engine: Engine, clips: Sequence[npt.NDArray[np.uint8]]) -> Outputs:
            begun.append(clips)
            if len(begun) > 1:
                assert raised.wait(60)
            raise ValueError("no answer")

        monkeypatch.setattr(Engine, "run", fail)
        pipeline = start(batch_sizes="1")
        with pytest.raises(ValueError, match="no answer"):
            await pipeline.infer(pipeline.model, frames_of(8), deadline=NEVER)
        await eventually(lambda: pipeline.model.depth == 0)
        raised.set()
        await asyncio.to_thread(pipeline.model.close)

        assert len(begun) <= 2  # the engine may have begun the second clip before the first one's error arrived


class TestReplace:
    async def test_new_clips_go_to_the_new_model_while_the_old_one_finishes(
        self, start: Start, gate: Gate, tmp_path: Path, clip: bytes, metrics: Metrics
    ) -> None:
        pipeline = start()
        old = pipeline.model
        settings = Settings(bundle=write_tiny_bundle(tmp_path, version="2"), device="cpu", max_queue=3)
        new = load_model(settings, metrics)
        with contextlib.closing(new):
            async with running(pipeline.predict(clip, deadline=NEVER)) as (first,):
                with gate.closed():
                    await eventually(lambda: gate.begun == 1)
                    async with running(pipeline.replace(new), pipeline.predict(clip, deadline=NEVER)) as tasks:
                        replacing, second = tasks
                        await eventually(lambda: gate.begun == 2)
                        assert not replacing.done()
                        gate.open.set()
                        await asyncio.gather(*tasks)
                first_model, second_model = (await first).model, second.result().model

        assert (first_model, second_model) == (old, new)
        assert not old.alive
        assert sample(metrics, "capacity_clips") == new.capacity == 4

    async def test_clips_that_were_admitted_are_answered_by_a_model_with_less_capacity(
        self, start: Start, gate: Gate, tiny_bundle: Path, clip: bytes
    ) -> None:
        pipeline = start(decode_workers=1, max_queue=0, batch_sizes="8")
        settings = Settings(bundle=tiny_bundle, device="cpu", max_queue=0, batch_sizes="1")
        new = load_model(settings, Metrics())
        with contextlib.closing(new):
            async with running(*(pipeline.predict(clip, deadline=NEVER) for _ in range(8))) as accepted:
                with gate.closed():
                    await eventually(lambda: gate.begun == 1)
                    async with running(pipeline.replace(new)) as (replacing,):
                        await eventually(lambda: pipeline.model.depth + gate.begun >= 6)
                        with pytest.raises(Overloaded):
                            await pipeline.predict(clip, deadline=NEVER)
                        gate.open.set()
                        answers = await asyncio.gather(*accepted)
                        await replacing

        assert len(answers) == 8
        assert new in {answer.model for answer in answers}

    async def test_a_held_model_is_not_closed_before_it_is_released(
        self, start: Start, tiny_bundle: Path, metrics: Metrics
    ) -> None:
        pipeline = start()
        old = pipeline.model
        new = load_model(Settings(bundle=tiny_bundle, device="cpu"), metrics)
        with contextlib.closing(new):
            with old.held():
                replacing = asyncio.create_task(pipeline.replace(new))
                answer = await pipeline.infer(old, frames_of(1), deadline=NEVER)
                assert old.alive
            await replacing

        assert answer.probabilities.shape == (1, len(LABELS))
        assert not old.alive


class TestClose:
    @pytest.fixture
    def own(self, gate: Gate, start: Start) -> Iterator[Pipeline]:
        """A pipeline with decoders of its own, which the test may close."""
        with contextlib.closing(start(load_decoders(Settings(), Metrics()))) as pipeline:
            yield pipeline

    async def test_waiting_clips_are_answered_and_new_ones_refused(self, own: Pipeline, gate: Gate) -> None:
        work = own.infer(own.model, frames_of(2), deadline=NEVER)
        async with running(work) as (inferring,):
            with gate.closed():
                await eventually(lambda: gate.begun == 1 and own.model.depth == 1)
                closing = asyncio.create_task(asyncio.to_thread(own.close))
                await eventually(lambda: not own.alive)
            await closing
            assert (await inferring).probabilities.shape == (2, len(LABELS))

        with pytest.raises(EngineStopped):
            await own.infer(own.model, frames_of(1), deadline=NEVER)

    async def test_no_further_clip_is_decoded(self, own: Pipeline, clip: bytes) -> None:
        own.close()

        with pytest.raises(DecodersError):
            await own.predict(clip, deadline=NEVER)


async def test_the_engine_frees_the_frames_of_a_clip_once_it_is_answered(
    start: Start, clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[Any]] = []
    run = Engine.run

    def watched(engine: Engine, clips: Sequence[npt.NDArray[np.uint8]]) -> Outputs:
        seen.extend(map(weakref.ref, clips))
        return run(engine, clips)

    monkeypatch.setattr(Engine, "run", watched)
    pipeline = start()
    prediction = await pipeline.predict(clip, deadline=NEVER)
    gc.collect()
    await eventually(lambda: seen[0]() is None)

    assert prediction.frames is None


class TestStages:
    def test_lists_entered_stages_in_order_in_milliseconds(self) -> None:
        assert Stages().milliseconds() == {}
        assert Stages(inference=0.25, receive=0.0011116).milliseconds() == {"receive": 1.112, "inference": 250}

    def test_a_stage_is_timed_even_if_it_fails(self) -> None:
        stages = Stages()
        with pytest.raises(ValueError, match="bad"), stages.timed("decode"):
            raise ValueError("bad")

        assert stages.decode is not None
        assert stages.decode >= 0
        assert list(stages.milliseconds()) == list(stages.began) == ["decode"]


class TestOutputs:
    """The one result type of the network."""

    def test_stacking_and_indexing_are_inverse(self) -> None:
        rng = np.random.default_rng(0)
        outputs = Outputs(rng.random((3, 6), np.float32), rng.random((3, 40, 7, 7), np.float32))
        stacked = Outputs.stack([outputs[clip] for clip in range(3)])

        assert stacked.attention is not None
        assert outputs.attention is not None
        assert (stacked.probabilities == outputs.probabilities).all()
        assert (stacked.attention == outputs.attention).all()

    def test_outputs_without_attention_have_none_for_a_single_clip(self) -> None:
        outputs = Outputs(np.zeros((2, 6), np.float32), None)

        assert outputs[0].attention is None
        assert Outputs.stack([outputs[0], outputs[1]]).attention is None
