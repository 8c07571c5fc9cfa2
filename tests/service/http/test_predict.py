import asyncio
import base64
import io
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from service.http.app import create_app
from service.http.schemas import PredictionAnswer
from service.settings import Settings
from service.video.decoder import decode_clip
from tests.service.video.clips import encode, numbered, read_number
from tests.tiny_bundle import LABELS, write_tiny_bundle

pytestmark = pytest.mark.anyio

PATIENCE_S = 60


@pytest.fixture
async def app(tiny_bundle: Path) -> AsyncIterator[FastAPI]:
    app = create_app(Settings(bundle=tiny_bundle, device="cpu", max_body_bytes=200_000))
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(app) as client:
        await until_ready(client)
        yield client


def connect(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=PATIENCE_S)


async def until_ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await client.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.01)


async def metrics_of(client: httpx.AsyncClient) -> dict[str, float]:
    """Map samples, named like ``name{label="value"}``, to their values."""
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    return {
        sample.name + "".join(f'{{{key}="{value}"}}' for key, value in sample.labels.items()): sample.value
        for family in families
        for sample in family.samples
    }


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["status"], body["code"]) == (status, status, code)
    assert response.headers["Content-Type"] == "application/problem+json"
    assert body["request_id"] == response.headers["X-Request-ID"]
    assert body["type"] == f"urn:limelight:problem:{code}"
    assert body["title"]
    assert body["detail"]
    return body


def picture(frame: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(frame["jpeg"])), formats=["JPEG"])


class TestAnswer:
    async def test_the_answer_has_the_documented_fields(self, client: httpx.AsyncClient, clip: bytes) -> None:
        body = (await client.post("/predict", content=clip)).json()

        assert list(body) == [
            "model", "clip", "predictions", "probabilities", "attention", "frames", "timings_ms"
        ]  # fmt: skip
        assert body["model"] == {
            "name": "tiny",
            "version": "1",
            "variant": "attention",
            "precision": body["model"]["precision"],
            "provider": "CPUExecutionProvider",
        }
        assert body["clip"] == {
            "container": "mp4",
            "codec": "h264",
            "width": 160,
            "height": 120,
            "coded_width": 160,
            "coded_height": 120,
            "frames": 50,
            "duration_s": 2.0,
            "rotation": 0,
            "damaged_frames": 0,
        }
        assert len(body["probabilities"]) == len(LABELS)
        assert sum(body["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert body["attention"]["grid"] == [7, 7]
        assert len(body["attention"]["maps"]) == 40
        for rows in body["attention"]["maps"]:
            assert [len(row) for row in rows] == [7] * 7
            assert sum(map(sum, rows)) == pytest.approx(1, abs=1e-4)
        assert len(body["frames"]) == 40
        assert body["frames"][1] == {"index": 1, "time_s": pytest.approx(0.075)}
        assert list(body["timings_ms"]) == ["receive", "decode", "queue", "inference", "total"]

    async def test_the_answer_matches_its_schema_and_maps_have_seven_decimals(
        self, client: httpx.AsyncClient, clip: bytes
    ) -> None:
        answer = PredictionAnswer.model_validate_json(
            (await client.post("/predict", content=clip)).content, strict=True
        )

        assert answer.attention is not None
        cells = np.array(answer.attention.maps)
        assert cells.shape == (40, 7, 7)
        np.testing.assert_array_equal(cells, cells.round(7))

    async def test_the_most_likely_classes_come_first(self, client: httpx.AsyncClient, clip: bytes) -> None:
        body = (await client.post("/predict", content=clip)).json()

        ranking = sorted(range(len(LABELS)), key=lambda index: -body["probabilities"][index])[:5]
        assert body["predictions"] == [
            {"label": LABELS[index], "index": index, "probability": body["probabilities"][index]} for index in ranking
        ]

    @pytest.mark.parametrize(("top_k", "listed"), [(1, 1), (100, len(LABELS))])
    async def test_top_k_classes_are_listed(
        self, client: httpx.AsyncClient, clip: bytes, top_k: int, listed: int
    ) -> None:
        body = (await client.post("/predict", params={"top_k": top_k}, content=clip)).json()

        assert len(body["predictions"]) == listed

    async def test_attention_is_null_with_attention_false(self, client: httpx.AsyncClient, clip: bytes) -> None:
        body = (await client.post("/predict", params={"attention": "false"}, content=clip)).json()

        assert body["attention"] is None

    async def test_form_and_raw_body_get_the_same_answer(self, client: httpx.AsyncClient, clip: bytes) -> None:
        raw = await client.post("/predict", content=clip, headers={"Content-Type": "video/mp4"})
        form = await client.post("/predict", files={"file": ("clip.mp4", clip, "video/mp4")})

        for part in ("clip", "predictions", "probabilities", "attention", "frames"):
            assert raw.json()[part] == form.json()[part]

    async def test_frames_jpeg_adds_pictures_of_the_sampled_frames(self, client: httpx.AsyncClient) -> None:
        clip = encode(numbered(number) for number in range(60))
        body = (await client.post("/predict", params={"frames": "jpeg"}, content=clip)).json()

        shown = [picture(frame) for frame in body["frames"]]
        assert {image.size for image in shown} == {(112, 112)}
        assert [read_number(np.asarray(image.resize((224, 224)))) for image in shown] == [
            frame["index"] for frame in body["frames"]
        ]

    async def test_pictures_show_what_the_network_saw(self, client: httpx.AsyncClient, clip: bytes) -> None:
        body = (await client.post("/predict", params={"frames": "jpeg"}, content=clip)).json()

        for frame, seen in zip(body["frames"], decode_clip(clip).frames, strict=True):
            halved = seen.reshape(112, 2, 112, 2, 3).mean(axis=(1, 3))
            assert np.abs(np.asarray(picture(frame)) - halved).mean() < 4  # of 255: the loss of JPEG

    async def test_a_frame_that_is_sampled_twice_has_the_same_picture_twice(self, client: httpx.AsyncClient) -> None:
        clip = encode(numbered(number) for number in range(7))
        frames = (await client.post("/predict", params={"frames": "jpeg"}, content=clip)).json()["frames"]

        assert len(frames) == 40
        assert len({(frame["index"], frame["jpeg"]) for frame in frames}) == 7

    async def test_pictures_change_nothing_else_in_the_answer(self, client: httpx.AsyncClient, clip: bytes) -> None:
        plain = (await client.post("/predict", content=clip)).json()
        answer = await client.post("/predict", params={"frames": "jpeg"}, content=clip)
        PredictionAnswer.model_validate_json(answer.content, strict=True)
        with_pictures = answer.json()
        for frame in with_pictures["frames"]:
            del frame["jpeg"]

        assert "encode;dur=" in answer.headers["Server-Timing"]
        assert plain.keys() == with_pictures.keys()
        for part in plain.keys() - {"timings_ms"}:
            assert plain[part] == with_pictures[part]

    async def test_the_server_timing_header_lists_the_stages(self, client: httpx.AsyncClient, clip: bytes) -> None:
        header = (await client.post("/predict", content=clip)).headers["Server-Timing"]

        assert re.findall(r"(\w+);dur=\d+\.\d{3}", header) == ["receive", "decode_wait", "decode", "queue", "inference"]


class TestRefusal:
    async def test_an_empty_body_is_refused(self, client: httpx.AsyncClient) -> None:
        assert_problem(await client.post("/predict"), 400, "empty_body")

    async def test_an_empty_file_is_refused(self, client: httpx.AsyncClient) -> None:
        assert_problem(await client.post("/predict", files={"file": b""}), 400, "empty_body")

    async def test_a_form_without_the_file_is_refused(self, client: httpx.AsyncClient) -> None:
        body = assert_problem(await client.post("/predict", files={"video": b"x"}), 400, "missing_file")

        assert "curl -F file=@clip.mp4" in body["detail"]

    @pytest.mark.parametrize(
        "body",
        [
            b"no boundary at all",
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\ncut off',
            b"--b\r\nContent-Disposition: form-data\r\n\r\nnameless\r\n--b--\r\n",
        ],
    )
    async def test_a_malformed_form_is_refused(self, client: httpx.AsyncClient, body: bytes) -> None:
        answer = await client.post(
            "/predict", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"}
        )

        assert_problem(answer, 400, "malformed_multipart")

    async def test_an_unsupported_content_type_is_refused(self, client: httpx.AsyncClient, clip: bytes) -> None:
        answer = await client.post("/predict", content=clip, headers={"Content-Type": "text/plain"})

        assert "text/plain" in assert_problem(answer, 415, "unsupported_media")["detail"]

    async def test_a_file_that_is_not_a_video_is_refused(self, client: httpx.AsyncClient) -> None:
        assert_problem(await client.post("/predict", content=b"just text " * 100), 415, "unsupported_media")

    async def test_a_damaged_clip_is_refused(self, client: httpx.AsyncClient, clip: bytes) -> None:
        assert_problem(await client.post("/predict", content=clip[: len(clip) // 2]), 422, "corrupt_clip")

    @pytest.mark.parametrize("query", ["top_k=0", "top_k=many", "attention=perhaps", "frames=png", "frames="])
    async def test_an_invalid_query_parameter_is_refused(
        self, client: httpx.AsyncClient, clip: bytes, query: str
    ) -> None:
        body = assert_problem(await client.post(f"/predict?{query}", content=clip), 422, "invalid_parameter")

        assert body["detail"].startswith(query.split("=", maxsplit=1)[0])

    async def test_an_upload_whose_declared_length_is_too_large_is_refused(self, client: httpx.AsyncClient) -> None:
        body = assert_problem(await client.post("/predict", content=bytes(200_001)), 413, "body_too_large")

        assert "200000" in body["detail"]

    @pytest.mark.parametrize("head", [b"", b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'])
    async def test_a_streamed_upload_is_refused_as_soon_as_it_is_too_large(
        self, client: httpx.AsyncClient, head: bytes
    ) -> None:
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            yield head
            while True:
                sent += 50_000
                yield bytes(50_000)

        media_type = "multipart/form-data; boundary=b" if head else "video/mp4"
        answer = await client.post("/predict", content=endless(), headers={"Content-Type": media_type})

        assert_problem(answer, 413, "body_too_large")
        assert answer.headers["Connection"] == "close"
        assert sent <= 500_000  # the limit, and what is discarded until the answer reaches the client

    async def test_an_unknown_path_is_refused(self, client: httpx.AsyncClient) -> None:
        assert_problem(await client.get("/nothing"), 404, "not_found")
        assert_problem(await client.post("/predict/"), 404, "not_found")

    async def test_an_unsupported_method_is_refused(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/predict")

        assert_problem(answer, 405, "method_not_allowed")
        assert answer.headers["Allow"] == "POST"

    async def test_a_stalled_upload_times_out(self, tiny_bundle: Path) -> None:
        async def stalling() -> AsyncIterator[bytes]:
            yield b"begun"
            await asyncio.sleep(PATIENCE_S)

        app = create_app(Settings(bundle=tiny_bundle, device="cpu", request_timeout_s=0.2))
        async with app.router.lifespan_context(app), connect(app) as client:
            await until_ready(client)
            assert_problem(await client.post("/predict", content=stalling()), 408, "upload_timeout")


class TestHealth:
    async def test_the_service_is_live_but_not_ready_before_the_model_is_loaded(
        self, tiny_bundle: Path, clip: bytes
    ) -> None:
        async with connect(create_app(Settings(bundle=tiny_bundle))) as client:  # not started
            alive, ready = await client.get("/health/live"), await client.get("/health/ready")
            predicted = await client.post("/predict", content=clip)

        assert (alive.status_code, alive.json()) == (200, {"status": "live"})
        assert_problem(ready, 503, "not_ready")
        assert_problem(predicted, 503, "not_ready")
        assert int(predicted.headers["Retry-After"]) > 0

    async def test_a_missing_bundle_is_reported_and_the_service_does_not_become_ready(self, tmp_path: Path) -> None:
        failures: list[Exception] = []
        app = create_app(Settings(bundle=tmp_path / "none"), on_failure=failures.append)
        async with app.router.lifespan_context(app), connect(app) as client:
            async with asyncio.timeout(PATIENCE_S):
                while not failures:
                    await asyncio.sleep(0.01)
            assert_problem(await client.get("/health/ready"), 503, "not_ready")

        assert str(tmp_path / "none" / "manifest.json") in str(failures[0])

    async def test_model_returns_the_manifest(self, client: httpx.AsyncClient) -> None:
        manifest = (await client.get("/model")).json()

        assert manifest["schema"] == 1
        assert manifest["labels"] == list(LABELS)
        assert set(manifest["precisions"]) == {"fp32", "fp16", "int8"}

    async def test_the_base_variant_answers_without_attention(self, tmp_path: Path, clip: bytes) -> None:
        app = create_app(Settings(bundle=write_tiny_bundle(tmp_path, variant="base"), device="cpu"))
        async with app.router.lifespan_context(app), connect(app) as client:
            await until_ready(client)
            answer = (await client.post("/predict", params={"frames": "jpeg"}, content=clip)).json()

        assert answer["attention"] is None
        assert all(picture(frame).size == (112, 112) for frame in answer["frames"])


class TestMetrics:
    async def test_predictions_are_counted_by_status_and_stage(self, client: httpx.AsyncClient, clip: bytes) -> None:
        await client.post("/predict", content=clip)
        await client.post("/predict", content=b"text")
        metrics = await metrics_of(client)

        assert metrics['limelight_request_seconds_count{status="200"}'] == 1
        assert metrics['limelight_request_seconds_count{status="415"}'] == 1
        assert metrics['limelight_rejected_total{code="unsupported_media"}'] == 1
        assert metrics['limelight_decoder_failures_total{reason="unsupported_media"}'] == 1
        stages = {"receive": 2, "decode_wait": 2, "decode": 1, "queue": 1, "inference": 1, "respond": 1}
        for stage, count in stages.items():
            assert metrics[f'limelight_stage_seconds_count{{stage="{stage}"}}'] == count
        assert metrics["limelight_clip_seconds_sum"] == 2
        assert metrics["limelight_upload_bytes_sum"] == len(clip) + 4
        assert metrics["limelight_batch_size_sum"] == 1

    @pytest.mark.parametrize("path", ["/%70redict", "/predict?x=/health/live", "/predict%0A"])
    async def test_predictions_are_counted_however_their_path_is_written(
        self, client: httpx.AsyncClient, clip: bytes, path: str
    ) -> None:
        answer = await client.post(path, content=clip)

        assert answer.status_code == 200
        assert (await metrics_of(client))['limelight_request_seconds_count{status="200"}'] == 1

    async def test_encoding_pictures_is_measured_as_a_stage(self, client: httpx.AsyncClient, clip: bytes) -> None:
        await client.post("/predict", params={"frames": "jpeg"}, content=clip)

        assert (await metrics_of(client))['limelight_stage_seconds_count{stage="encode"}'] == 1

    async def test_gauges_describe_the_current_state(self, client: httpx.AsyncClient) -> None:
        metrics = await metrics_of(client)

        assert metrics["limelight_ready"] == 1
        assert metrics["limelight_in_flight_requests"] == 0
        assert metrics['limelight_queue_depth{queue="decode"}'] == 0
        assert metrics['limelight_queue_depth{queue="inference"}'] == 0
        for layer in ("rlimits", "no_new_privs", "landlock", "seccomp"):
            assert metrics[f'limelight_sandbox{{layer="{layer}"}}'] in {0, 1}
        model = next(name for name in metrics if name.startswith("limelight_model_info"))
        for part in ('name="tiny"', 'version="1"', 'variant="attention"', 'provider="CPUExecutionProvider"'):
            assert part in model

    async def test_histograms_of_seconds_range_from_a_millisecond_to_a_minute(
        self, client: httpx.AsyncClient, clip: bytes
    ) -> None:
        await client.post("/predict", content=clip)
        text = (await client.get("/metrics")).text

        bounds = re.findall(r'request_seconds_bucket{le="([\d.]+)",status="200"}', text)
        assert (float(bounds[0]), float(bounds[-1])) == (0.001, 60)

    async def test_two_applications_do_not_share_metrics(
        self, client: httpx.AsyncClient, tiny_bundle: Path, clip: bytes
    ) -> None:
        await client.post("/predict", content=clip)
        other = create_app(Settings(bundle=tiny_bundle))
        async with connect(other) as other_client:
            metrics = await metrics_of(other_client)

        assert metrics["limelight_batch_size_count"] == 0
