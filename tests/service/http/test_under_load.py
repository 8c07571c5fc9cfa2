"""Requests when the engine is slow or fails, with an engine whose inferences the test holds back."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import Mock

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.types import Message

from service.http.app import create_app
from service.http.logs import JsonFormatter
from service.model.bundle import Outputs
from service.model.engine import Engine
from service.settings import Settings
from tests.tiny_bundle import LABELS, write_tiny_bundle

pytestmark = pytest.mark.anyio


class Brake:
    """Holds every inference back until ``released`` is set; then runs it, or raises ``error``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.released = threading.Event()
        self.released.set()
        self.error: BaseException | None = None
        self.begun = 0
        self._passing = 0
        run = Engine.run

        def braked(engine: Engine, clips: Sequence[npt.NDArray[np.uint8]]) -> Outputs:
            self.begun += 1
            if self._passing:
                self._passing -= 1
            else:
                assert self.released.wait(60)
            if self.error is not None:
                raise self.error
            return run(engine, clips)

        monkeypatch.setattr(Engine, "run", braked)

    def pass_on(self, inferences: int) -> None:
        """Let the next ``inferences`` inferences run even if the brake is on."""
        self._passing = inferences


@pytest.fixture
def brake(monkeypatch: pytest.MonkeyPatch) -> Brake:
    return Brake(monkeypatch)


@asynccontextmanager
async def serving(brake: Brake, settings: Settings) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """Yield the application, warmed up, with the brake on, and a client of it."""
    app = create_app(settings)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        await until(lambda: app.state.serving.ready)
        brake.begun = 0
        brake.released.clear()
        try:
            yield app, client
        finally:
            brake.released.set()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def in_flight(app: FastAPI) -> float | None:
    """Return the number of predictions being received or answered."""
    value: float | None = app.state.serving.metrics.registry.get_sample_value("limelight_in_flight_requests")
    return value


def waiting(app: FastAPI) -> float | None:
    """Return the number of clips that wait for the engine."""
    value: float | None = app.state.serving.metrics.registry.get_sample_value(
        "limelight_queue_depth", {"queue": "inference"}
    )
    return value


async def test_a_clip_beyond_the_queue_is_refused_at_once(brake: Brake, tiny_bundle: Path, clip: bytes) -> None:
    settings = Settings(bundle=tiny_bundle, device="cpu", max_queue=1)
    async with serving(brake, settings) as (app, client):
        running = asyncio.create_task(client.post("/predict", content=clip))
        await until(lambda: brake.begun == 1)
        queued = asyncio.create_task(client.post("/predict", content=clip))
        await until(lambda: waiting(app) == 1)
        refused = await client.post("/predict", content=clip)
        brake.released.set()
        answers = await asyncio.gather(running, queued)

    assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
    assert int(refused.headers["Retry-After"]) >= 1
    assert [answer.status_code for answer in answers] == [200, 200]


async def test_a_full_queue_refuses_a_clip_before_it_is_sent(brake: Brake, tiny_bundle: Path, clip: bytes) -> None:
    async def unsent() -> AsyncIterator[bytes]:
        await asyncio.sleep(3600)
        yield clip

    settings = Settings(bundle=tiny_bundle, device="cpu", max_queue=0, upload_timeout_s=0.1)
    async with serving(brake, settings) as (_, client):
        accepted = asyncio.create_task(client.post("/predict", content=clip))
        await until(lambda: brake.begun == 1)
        refused = await client.post("/predict", content=unsent())
        brake.released.set()
        await accepted
        stalled = await client.post("/predict", content=unsent())

    assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
    assert (stalled.status_code, stalled.json()["code"]) == (408, "upload_timeout")


async def test_a_full_queue_refuses_nothing_but_clips(brake: Brake, tiny_bundle: Path, clip: bytes) -> None:
    paths = ["/health/live", "/health/ready", "/metrics", "/model", "/", "/v2/models", "/v2/health/ready", "/predict"]
    async with serving(brake, Settings(bundle=tiny_bundle, device="cpu", max_queue=0)) as (_, client):
        accepted = asyncio.create_task(client.post("/predict", content=clip))
        await until(lambda: brake.begun == 1)
        answers = [await client.get(path) for path in paths]
        brake.released.set()
        await accepted

    assert [answer.status_code for answer in answers] == [*[200] * 7, 405]


async def test_a_full_queue_is_reported_only_to_requests_with_a_key(
    brake: Brake, tiny_bundle: Path, clip: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    caplog.set_level(logging.INFO)
    key = {"X-API-Key": "spring-7f3a"}
    settings = Settings(bundle=tiny_bundle, device="cpu", max_queue=0, api_keys=(SecretStr("spring-7f3a"),))
    async with serving(brake, settings) as (app, client):
        accepted = asyncio.create_task(client.post("/predict", content=clip, headers=key))
        await until(lambda: brake.begun == 1)
        without_key = await client.post("/predict", content=clip)
        refused = await client.post("/predict", content=clip, headers=key)
        refused_tensors = await client.post("/v2/models/tiny/infer", headers=key)
        brake.released.set()
        await accepted
        rejected = app.state.serving.metrics.registry.get_sample_value(
            "limelight_rejected_total", {"code": "overloaded"}
        )

    assert [answer.status_code for answer in (without_key, refused, refused_tensors)] == [401, 429, 429]
    assert refused.json()["request_id"] == refused.headers["X-Request-ID"]
    assert refused_tensors.json()["error"] == refused_tensors.json()["detail"]
    assert rejected == 2
    lines = [(line["path"], line["status"], line.get("code")) for line in log_lines(caplog) if "status" in line]
    assert ("/predict", 429, "overloaded") in lines


async def test_stalled_uploads_take_no_place_in_the_queue(brake: Brake, tiny_bundle: Path, clip: bytes) -> None:
    async def stalling() -> AsyncIterator[bytes]:
        yield clip[:1000]
        await asyncio.sleep(3600)

    async with serving(brake, Settings(bundle=tiny_bundle, device="cpu", max_queue=0)) as (app, client):
        brake.released.set()
        slow = [asyncio.create_task(client.post("/predict", content=stalling())) for _ in range(20)]
        await until(lambda: in_flight(app) == 20)
        answer = await client.post("/predict", content=clip)
        for each in slow:
            each.cancel()
        await asyncio.wait(slow)

    assert answer.status_code == 200


async def test_a_prediction_is_cancelled_at_its_deadline(
    brake: Brake, tiny_bundle: Path, clip: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    caplog.set_level(logging.INFO)
    settings = Settings(bundle=tiny_bundle, device="cpu", request_timeout_s=2)
    async with serving(brake, settings) as (_, client):
        answer = await client.post("/predict", content=clip)

    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    (line,) = (line for line in log_lines(caplog) if line["message"] == "request")
    assert (line["status"], line["code"]) == (504, "deadline_exceeded")
    assert line["stages_ms"].keys() >= {"receive", "decode_wait", "decode"}  # the stages that it reached


async def test_a_prediction_is_cancelled_if_its_client_disconnects(
    brake: Brake, tiny_bundle: Path, clip: bytes
) -> None:
    async with serving(brake, Settings(bundle=tiny_bundle, device="cpu")) as (app, client):
        patient = asyncio.create_task(client.post("/predict", content=clip))
        await until(lambda: brake.begun == 1)
        gone = asyncio.Event()
        impatient = asyncio.create_task(post_until(app, clip, gone))
        await until(lambda: waiting(app) == 1)
        gone.set()
        await impatient
        left = waiting(app)
        brake.released.set()
        await patient
        lost = app.state.serving.metrics.registry.get_sample_value("limelight_request_seconds_count", {"status": "499"})

    assert left == 0
    assert brake.begun == 1
    assert lost == 1


async def test_a_client_that_disconnects_during_its_upload_is_logged_once(
    brake: Brake, tiny_bundle: Path, clip: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    caplog.set_level(logging.INFO)
    async with serving(brake, Settings(bundle=tiny_bundle, device="cpu")) as (app, _):
        gone = asyncio.Event()
        uploading = asyncio.create_task(post_until(app, clip[:1000], gone, more_body=True))
        await until(lambda: in_flight(app) == 1)
        gone.set()
        await uploading
        left = in_flight(app)

    assert left == 0
    assert brake.begun == 0
    (line,) = (line for line in log_lines(caplog) if line["message"] == "request")
    assert (line["path"], line["status"]) == ("/predict", 499)


async def post_until(
    app: FastAPI,
    body: bytes,
    gone: asyncio.Event,
    *,
    path: str = "/predict",
    headers: Mapping[str, str] = MappingProxyType({}),
    more_body: bool = False,
) -> None:
    """Send a POST request as a client that disconnects when ``gone`` is set."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": more_body}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": path, "query_string": b"", "headers": raw
    }  # fmt: skip
    await app(scope, receive, send)


async def test_a_failed_inference_is_answered_with_500_and_its_cause_is_logged(
    brake: Brake, tiny_bundle: Path, clip: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    async with serving(brake, Settings(bundle=tiny_bundle, device="cpu")) as (_, client):
        brake.error = RuntimeError("CUDA ran out of memory")
        brake.released.set()
        answer = await client.post("/predict", content=clip, headers={"X-Request-ID": "abc-123"})
        brake.error = None
        next_answer = await client.post("/predict", content=clip)

    body = answer.json()
    assert (answer.status_code, body["code"], body["request_id"]) == (500, "internal_error", "abc-123")
    assert "CUDA" not in answer.text
    (failure,) = (line for line in log_lines(caplog) if line["level"] == "error")
    assert failure["request_id"] == "abc-123"
    assert "CUDA ran out of memory" in failure["traceback"]
    assert next_answer.status_code == 200


async def test_the_service_is_not_ready_after_the_engine_died(brake: Brake, tiny_bundle: Path, clip: bytes) -> None:
    async with serving(brake, Settings(bundle=tiny_bundle, device="cpu")) as (app, client):
        brake.error = SystemExit()
        brake.released.set()
        answer = await client.post("/predict", content=clip)
        await until(lambda: not app.state.serving.ready)
        ready, later = await client.get("/health/ready"), await client.post("/predict", content=clip)

    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert (ready.status_code, later.status_code, later.json()["code"]) == (503, 503, "not_ready")


class TestShutdown:
    async def test_predictions_are_still_served_while_the_service_is_draining(
        self, brake: Brake, tiny_bundle: Path, clip: bytes
    ) -> None:
        async with serving(brake, Settings(bundle=tiny_bundle, device="cpu")) as (app, client):
            brake.released.set()
            before = await client.post("/predict", content=clip)
            app.state.serving.draining = True
            ready, alive = await client.get("/health/ready"), await client.get("/health/live")
            answer = await client.post("/predict", content=clip)
            metric = app.state.serving.metrics.registry.get_sample_value("limelight_ready")

        assert (ready.status_code, ready.json()["code"]) == (503, "draining")
        assert (alive.status_code, metric) == (200, 0)
        assert (before.status_code, before.headers.get("Connection")) == (200, None)
        assert (answer.status_code, answer.headers.get("Connection")) == (200, "close")

    async def test_predictions_are_refused_once_the_service_is_closed(
        self, brake: Brake, tiny_bundle: Path, clip: bytes
    ) -> None:
        async with serving(brake, Settings(bundle=tiny_bundle, device="cpu", max_queue=0)) as (app, client):
            last = asyncio.create_task(client.post("/predict", content=clip))
            await until(lambda: brake.begun == 1)
            app.state.serving.draining = app.state.serving.closed = True
            answer = await client.post("/predict", content=clip)
            brake.released.set()
            await last

        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        assert int(answer.headers["Retry-After"]) >= 1


class TestReload:
    async def test_new_requests_get_the_new_bundle_while_the_old_one_finishes(
        self, brake: Brake, tmp_path: Path, clip: bytes
    ) -> None:
        bundle = write_tiny_bundle(tmp_path, version="1")
        async with serving(brake, Settings(bundle=bundle, device="cpu")) as (app, client):
            old = [asyncio.create_task(client.post("/predict", content=clip)) for _ in range(3)]
            await until(lambda: brake.begun == 1 and waiting(app) == 2)
            brake.pass_on(1)  # the first inference of the new bundle
            write_tiny_bundle(tmp_path, LABELS[:3], version="2")
            reloading = asyncio.create_task(app.state.serving.reload(app.state.serving.pipeline))
            await until(lambda: model_version(app) == "2")
            new = await client.post("/predict", content=clip)
            brake.released.set()
            await reloading
            answers = [answer.json() for answer in await asyncio.gather(*old)]

        assert [(answer["model"]["version"], len(answer["probabilities"])) for answer in answers] == [
            ("1", len(LABELS))
        ] * 3
        assert (new.json()["model"]["version"], len(new.json()["probabilities"])) == ("2", 3)

    async def test_the_old_bundle_stays_in_service_if_the_new_one_is_damaged(
        self, brake: Brake, tmp_path: Path, clip: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        bundle = write_tiny_bundle(tmp_path)
        async with serving(brake, Settings(bundle=bundle, device="cpu")) as (app, client):
            brake.released.set()
            (bundle / "manifest.json").write_text("{}", encoding="utf-8")
            await app.state.serving.reload(app.state.serving.pipeline)
            answer = await client.post("/predict", content=clip)

        assert (answer.status_code, answer.json()["model"]["version"]) == (200, "1")
        assert "reload failed" in caplog.text
        assert "manifest.json" in caplog.text

    async def test_an_error_without_text_is_named_in_the_log(
        self, brake: Brake, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with serving(brake, Settings(bundle=write_tiny_bundle(tmp_path), device="cpu")) as (app, _):
            monkeypatch.setattr(Engine, "warm_up", Mock(side_effect=MemoryError))
            await app.state.serving.reload(app.state.serving.pipeline)

        (line,) = (line for line in caplog.records if "reload failed" in line.message)
        assert line.message.endswith(": MemoryError")
        assert line.exc_info


def model_version(app: FastAPI) -> str:
    """Return the version of the model that the metrics name."""
    samples = (sample for family in app.state.serving.metrics.registry.collect() for sample in family.samples)
    version: str
    (version,) = (sample.labels["version"] for sample in samples if sample.name == "limelight_model_info")
    return version


class TestRequestId:
    @pytest.mark.parametrize("sent", ["7f3a-1", "Root=1-67891233-abcdef012345678912345678"])
    async def test_the_id_of_the_request_is_kept(self, tiny_bundle: Path, sent: str) -> None:
        assert await self.echoed(tiny_bundle, sent) == sent

    @pytest.mark.parametrize("sent", ["", 'a"b', "x" * 129, "a b"])
    async def test_a_missing_or_unsafe_id_is_replaced_by_a_new_one(self, tiny_bundle: Path, sent: str) -> None:
        echoed = await self.echoed(tiny_bundle, sent)

        assert len(echoed) == 32
        assert echoed != await self.echoed(tiny_bundle, sent)

    async def echoed(self, bundle: Path, sent: str) -> str:
        transport = httpx.ASGITransport(create_app(Settings(bundle=bundle)))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/health/live", headers={"X-Request-ID": sent})).headers["X-Request-ID"]


async def test_each_request_is_logged_once_with_its_stages(
    brake: Brake, tiny_bundle: Path, clip: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    caplog.set_level(logging.INFO)
    async with serving(brake, Settings(bundle=tiny_bundle, device="cpu")) as (_, client):
        brake.released.set()
        good = await client.post("/predict", content=clip)
        bad = await client.post("/predict", content=b"text")
        await client.get("/health/ready")

    lines = [line for line in log_lines(caplog) if line["message"] == "request"]
    assert [(line["method"], line["path"], line["status"], line.get("code")) for line in lines] == [
        ("POST", "/predict", 200, None),
        ("POST", "/predict", 415, "unsupported_media"),
    ]
    assert [line["request_id"] for line in lines] == [good.headers["X-Request-ID"], bad.headers["X-Request-ID"]]
    assert set(lines[0]["stages_ms"]) == {"receive", "decode_wait", "decode", "queue", "inference"}
    assert lines[0]["duration_ms"] >= lines[0]["stages_ms"]["decode"]


def log_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(line) for line in caplog.text.splitlines()]
