"""v2 inference requests when the engine is slow, the queue is full, or the bundle is replaced."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service.http.app import create_app
from service.settings import Settings
from tests.service.http.test_under_load import (
    Brake,
    brake,
    in_flight,
    model_version,
    post_until,
    serving,
    until,
    waiting,
)
from tests.tiny_bundle import LABELS, write_tiny_bundle

__all__ = ["brake"]  # a fixture
pytestmark = pytest.mark.anyio

URL = "/v2/models/tiny/infer"


def message(clips: int, **wanted: Any) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request with this many black clips, and further fields for its JSON."""
    size = clips * 40 * 224 * 224 * 3
    tensor = {"name": "frames", "shape": [clips, 40, 224, 224, 3], "datatype": "UINT8"}
    header = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": size}}]} | wanted).encode()
    return header + bytes(size), {"Inference-Header-Content-Length": str(len(header))}


async def infer(client: httpx.AsyncClient, clips: int = 1) -> httpx.Response:
    content, headers = message(clips)
    return await client.post(URL, content=content, headers=headers)


async def test_the_clips_of_a_request_are_answered_in_order(brake: Brake, tiny_bundle: Path) -> None:
    async with serving(brake, Settings(bundle=tiny_bundle, device="cpu")) as (_, client):
        brake.released.set()
        answer = await infer(client, 3)

    probabilities, attention = answer.json()["outputs"]
    assert brake.begun == 3
    assert (probabilities["shape"], attention["shape"]) == ([3, len(LABELS)], [3, 40, 7, 7])
    rows = np.reshape(probabilities["data"], (3, -1))
    np.testing.assert_array_equal(rows, rows[[0, 0, 0]])


async def test_the_base_variant_has_no_attention_output(brake: Brake, tmp_path: Path) -> None:
    async with serving(brake, Settings(bundle=write_tiny_bundle(tmp_path, variant="base"), device="cpu")) as (
        _,
        client,
    ):
        brake.released.set()
        answer = await infer(client)
        metadata = (await client.get("/v2/models/tiny")).json()

    assert [output["name"] for output in answer.json()["outputs"]] == ["probabilities"]
    assert [output["name"] for output in metadata["outputs"]] == ["probabilities"]


async def test_the_clips_of_a_request_are_admitted_all_or_not_at_all(brake: Brake, tiny_bundle: Path) -> None:
    async with serving(brake, Settings(bundle=tiny_bundle, device="cpu", max_queue=2)) as (app, client):
        accepted = asyncio.create_task(infer(client, 2))
        await until(lambda: brake.begun == 1 and waiting(app) == 1)
        for_later, never = await infer(client, 2), await infer(client, 4)
        brake.released.set()
        answer = await accepted

    assert answer.status_code == 200
    assert (for_later.status_code, for_later.json()["code"]) == (429, "overloaded")
    assert int(for_later.headers["Retry-After"]) >= 1
    assert (never.status_code, never.json()["code"]) == (400, "invalid_tensor")
    assert brake.begun == 2


async def test_a_request_is_cancelled_at_its_deadline(brake: Brake, tiny_bundle: Path) -> None:
    async with serving(brake, Settings(bundle=tiny_bundle, device="cpu", request_timeout_s=1)) as (app, client):
        answer = await infer(client, 2)
        left = waiting(app)

    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert answer.json()["error"] == answer.json()["detail"]
    assert left == 0


async def test_a_timeout_shortens_the_deadline(brake: Brake, tiny_bundle: Path) -> None:
    content, headers = message(1, parameters={"timeout": 400_000})
    async with serving(brake, Settings(bundle=tiny_bundle, device="cpu")) as (app, client):
        async with asyncio.timeout(30):  # half of the service's own
            answer = await client.post(URL, content=content, headers=headers)
        left = app.state.serving.pipeline.model.depth

    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert left == 0


async def test_a_request_is_cancelled_if_its_client_disconnects(brake: Brake, tiny_bundle: Path) -> None:
    async with serving(brake, Settings(bundle=tiny_bundle, device="cpu")) as (app, client):
        patient = asyncio.create_task(infer(client))
        await until(lambda: brake.begun == 1)
        gone = asyncio.Event()
        content, headers = message(2)
        impatient = asyncio.create_task(post_until(app, content, gone, path=URL, headers=headers))
        await until(lambda: waiting(app) == 2)
        gone.set()
        await impatient
        left = waiting(app)
        brake.released.set()
        await patient

    assert left == 0
    assert brake.begun == 1


async def test_inference_is_refused_before_the_model_is_loaded(tiny_bundle: Path) -> None:
    app = create_app(Settings(bundle=tiny_bundle))  # not started
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        live, ready = await client.get("/v2/health/live"), await client.get("/v2/health/ready")
        inferred = await client.post(URL)

    assert (live.status_code, live.json()) == (200, {"live": True})
    assert (ready.status_code, ready.json()["code"], ready.json()["error"]) == (
        503,
        "not_ready",
        "the model is being loaded; poll /health/ready",
    )
    assert inferred.status_code == 503


class TestReload:
    """The new bundle has no attention output, which the requests ask for."""

    async def test_a_request_that_has_arrived_is_answered_by_the_old_bundle(self, brake: Brake, tmp_path: Path) -> None:
        bundle = write_tiny_bundle(tmp_path, version="1")
        async with serving(brake, Settings(bundle=bundle, device="cpu")) as (app, client):
            brake.released.set()
            async with app.state.serving.reading_tensors:  # delays parsing until the bundle has been replaced
                content, headers = message(1, outputs=[{"name": "attention"}])
                asked = asyncio.create_task(client.post(URL, content=content, headers=headers))
                await until(lambda: arrived(app) == 1)
                write_tiny_bundle(tmp_path, version="2", variant="base")
                reloading = asyncio.create_task(app.state.serving.reload(app.state.serving.pipeline))
                await until(lambda: model_version(app) == "2")
            answer = await asked
            await reloading

        assert (answer.status_code, answer.json()["model_version"]) == (200, "1")
        assert [output["name"] for output in answer.json()["outputs"]] == ["attention"]

    @pytest.mark.parametrize(
        ("url", "status", "code"),
        [(URL, 400, "invalid_tensor"), ("/v2/models/tiny/versions/1/infer", 404, "unknown_model")],
    )
    async def test_a_request_that_is_still_arriving_must_match_the_new_bundle(
        self, brake: Brake, tmp_path: Path, url: str, status: int, code: str
    ) -> None:
        content, headers = message(1, outputs=[{"name": "attention"}])
        replaced = asyncio.Event()

        async def paused() -> AsyncIterator[bytes]:
            yield content[:1000]
            await replaced.wait()
            yield content[1000:]

        bundle = write_tiny_bundle(tmp_path, version="1")
        async with serving(brake, Settings(bundle=bundle, device="cpu")) as (app, client):
            brake.released.set()
            asked = asyncio.create_task(client.post(url, content=paused(), headers=headers))
            await until(lambda: in_flight(app) == 1)
            write_tiny_bundle(tmp_path, version="2", variant="base")
            await app.state.serving.reload(app.state.serving.pipeline)
            replaced.set()
            answer = await asked

        assert (answer.status_code, answer.json()["code"]) == (status, code)


def arrived(app: FastAPI) -> float | None:
    """Return the number of requests whose body has arrived."""
    value: float | None = app.state.serving.metrics.registry.get_sample_value("limelight_upload_bytes_count")
    return value
