"""The Open Inference Protocol v2, tested with Triton's client and a running server."""

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from service.video.decoder import Image, decode_clip
from tests.e2e.process import PATIENCE_S, Server, running
from tests.processes import until
from tests.tiny_bundle import LABELS

KEY = "triton-7f3a"


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tiny_bundle, tmp_path_factory.mktemp("log") / "log.jsonl", {"API_KEYS": KEY}) as server:
        yield server


@pytest.fixture
def triton(server: Server) -> Iterator[InferenceServerClient]:
    client = InferenceServerClient(
        f"127.0.0.1:{server.port}", network_timeout=PATIENCE_S, connection_timeout=PATIENCE_S
    )
    client.register_plugin(lambda request: request.headers.update({"X-API-Key": KEY}))
    yield client
    client.close()


@pytest.fixture(scope="module")
def frames(clip: bytes) -> Image:
    return decode_clip(clip).frames


def tensor(frames: Image, *, binary: bool = True) -> InferInput:
    sent = InferInput("frames", list(frames.shape), "UINT8")
    sent.set_data_from_numpy(frames, binary_data=binary)
    return sent


def test_the_client_finds_server_and_model_ready(triton: InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("tiny")
    assert triton.is_model_ready("tiny", "1")
    assert not triton.is_model_ready("huge")
    assert not triton.is_model_ready("tiny", "2")


def test_the_metadata_describes_the_tensors(triton: InferenceServerClient) -> None:
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    metadata = triton.get_model_metadata("tiny")
    assert (metadata["name"], metadata["versions"]) == ("tiny", ["1"])
    assert metadata["inputs"] == [{"name": "frames", "datatype": "UINT8", "shape": [-1, 40, 224, 224, 3]}]
    assert metadata["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(LABELS)]},
        {"name": "attention", "datatype": "FP32", "shape": [-1, 40, 7, 7]},
    ]
    config = triton.get_model_config("tiny")
    assert config["input"] == [{"name": "frames", "data_type": "TYPE_UINT8", "dims": [40, 224, 224, 3]}]
    assert config["max_batch_size"] == 17


def test_a_binary_tensor_gets_the_same_answer_as_its_clip(
    triton: InferenceServerClient, server: Server, clip: bytes, frames: Image
) -> None:
    predicted = httpx.post(
        f"{server.url}/predict", content=clip, headers={"X-API-Key": KEY}, timeout=PATIENCE_S, trust_env=False
    ).json()

    inferred = triton.infer("tiny", [tensor(frames[np.newaxis])], request_id="clip-1")

    assert inferred.get_response()["id"] == "clip-1"
    np.testing.assert_array_equal(
        inferred.as_numpy("probabilities"), np.array([predicted["probabilities"]], np.float32)
    )
    np.testing.assert_allclose(inferred.as_numpy("attention")[0], predicted["attention"]["maps"], atol=1e-6)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_every_encoding_and_compression_gives_the_same_answer(
    triton: InferenceServerClient, frames: Image, compression: str | None, binary: bool
) -> None:
    batch = np.stack([frames, 255 - frames])
    expected = triton.infer("tiny", [tensor(batch)])

    inferred = triton.infer(
        "tiny",
        [tensor(batch)],
        model_version="1",
        outputs=[InferRequestedOutput("probabilities", binary_data=binary)],
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )

    assert [output["name"] for output in inferred.get_response()["outputs"]] == ["probabilities"]
    np.testing.assert_array_equal(inferred.as_numpy("probabilities"), expected.as_numpy("probabilities"))
    assert not np.array_equal(*inferred.as_numpy("probabilities"))


def test_a_tensor_sent_as_json_gets_the_same_answer(triton: InferenceServerClient, frames: Image) -> None:
    expected = triton.infer("tiny", [tensor(frames[np.newaxis])])

    inferred = triton.infer("tiny", [tensor(frames[np.newaxis], binary=False)])

    np.testing.assert_array_equal(inferred.as_numpy("probabilities"), expected.as_numpy("probabilities"))


def test_the_model_is_listed(triton: InferenceServerClient, server: Server) -> None:
    models = httpx.get(f"{server.url}/v2/models", headers={"X-API-Key": KEY}, trust_env=False)

    assert models.json() == {"models": ["tiny"]}
    assert triton.get_model_repository_index() == [{"name": "tiny", "version": "1", "state": "READY", "reason": ""}]


def test_the_statistics_count_clips_batches_and_durations(
    triton: InferenceServerClient, server: Server, clip: bytes, frames: Image
) -> None:
    assert "statistics" in triton.get_server_metadata()["extensions"]
    before = statistics(triton)
    asked_ms = 1000 * time.time()
    triton.infer("tiny", [tensor(np.stack([frames, frames]))])
    httpx.post(f"{server.url}/predict", content=clip, headers={"X-API-Key": KEY}, trust_env=False)
    with pytest.raises(InferenceServerException):
        triton.infer("tiny", [tensor(frames)])
    until(lambda: statistics(triton)["inference_stats"]["fail"]["count"] > before["inference_stats"]["fail"]["count"])
    after = statistics(triton)

    assert asked_ms <= after["last_inference"] <= 1000 * time.time()
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] - before["execution_count"] == 3
    expected = {"success": 2, "fail": 1, "queue": 2, "compute_input": 1, "compute_infer": 2, "compute_output": 0}
    durations = {name: difference(before, after, name) for name in after["inference_stats"]}
    for name, count in (expected | {"cache_hit": 0, "cache_miss": 0}).items():
        assert durations[name][0] == count, name
        assert (durations[name][1] > 0) == (count > 0), name
    assert durations["compute_infer"][1] < durations["success"][1] < 1e9 * PATIENCE_S
    assert triton.get_inference_statistics("tiny") == triton.get_inference_statistics("tiny", "1")
    with pytest.raises(InferenceServerException, match="does not serve the model huge"):
        triton.get_inference_statistics("huge")


def statistics(triton: InferenceServerClient) -> dict[str, Any]:
    (of_model,) = triton.get_inference_statistics()["model_stats"]
    assert (of_model["name"], of_model["version"]) == ("tiny", "1")
    return cast(dict[str, Any], of_model)


def difference(before: dict[str, Any], after: dict[str, Any], name: str) -> tuple[int, int]:
    """Return by how much a duration's count and nanoseconds have grown."""
    old, new = before["inference_stats"][name], after["inference_stats"][name]
    return new["count"] - old["count"], new["ns"] - old["ns"]


class TestTimeout:
    def test_an_answer_that_takes_longer_is_504(self, triton: InferenceServerClient, frames: Image) -> None:
        with pytest.raises(InferenceServerException, match="not ready in time") as refused:
            triton.infer("tiny", [tensor(frames[np.newaxis])], timeout=1)

        assert refused.value.status() == "504"

    @pytest.mark.parametrize("timeout", [0, 10**15])
    def test_no_timeout_and_one_beyond_the_services_own_change_nothing(
        self, triton: InferenceServerClient, frames: Image, timeout: int
    ) -> None:
        assert triton.infer("tiny", [tensor(frames[np.newaxis])], timeout=timeout).as_numpy("probabilities").size

    def test_a_negative_timeout_is_400(self, triton: InferenceServerClient, frames: Image) -> None:
        with pytest.raises(InferenceServerException, match="`timeout` must be") as refused:
            triton.infer("tiny", [tensor(frames[np.newaxis])], timeout=-1)

        assert refused.value.status() == "400"


@pytest.mark.parametrize(
    ("codings", "status", "text"),
    [
        (["gzip", "identity"], 200, "probabilities"),
        (["gzip, identity"], 200, "probabilities"),
        (["Identity , X-GZIP"], 200, "probabilities"),
        (["zstd"], 415, "encoding zstd is not supported"),
        (["gzip", "br"], 415, "encoding br is not supported"),
        (["gzip", "gzip"], 415, "compressed 2 times"),
    ],
)
def test_codings_may_be_listed_in_one_header_line_or_several(
    server: Server, frames: Image, codings: list[str], status: int, text: str
) -> None:
    content, headers = message(frames[np.newaxis])
    answer = httpx.post(
        f"{server.url}/v2/models/tiny/infer",
        content=gzip.compress(content, 1),
        headers=[("X-API-Key", KEY), *headers.items(), *(("Content-Encoding", coding) for coding in codings)],
        trust_env=False,
    )

    assert (answer.status_code, text in answer.text) == (status, True)


def message(frames: Image) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request whose clips follow the JSON as bytes."""
    described = {"name": "frames", "shape": frames.shape, "datatype": "UINT8"}
    header = json.dumps({"inputs": [described | {"parameters": {"binary_data_size": frames.nbytes}}]}).encode()
    return header + frames.tobytes(), {"Inference-Header-Content-Length": str(len(header))}


class TestErrors:
    def test_an_unknown_model_is_404(self, triton: InferenceServerClient, frames: Image) -> None:
        with pytest.raises(InferenceServerException) as refused:
            triton.infer("huge", [tensor(frames[np.newaxis])])

        assert refused.value.status() == "404"
        assert refused.value.message() == "this service does not serve the model huge; it serves tiny, version 1"

    def test_a_tensor_of_another_shape_is_400(self, triton: InferenceServerClient, frames: Image) -> None:
        with pytest.raises(InferenceServerException) as refused:
            triton.infer("tiny", [tensor(frames)])

        assert refused.value.status() == "400"
        assert refused.value.message() == (
            "`frames` has the shape [40, 224, 224, 3]; the model requires [clips, 40, 224, 224, 3]"
        )

    def test_an_unknown_output_is_named(self, triton: InferenceServerClient, frames: Image) -> None:
        with pytest.raises(InferenceServerException, match="the model has no output `logits`; it has `probabilities`"):
            triton.infer("tiny", [tensor(frames[np.newaxis])], outputs=[InferRequestedOutput("logits")])

    def test_a_missing_api_key_is_reported(self, server: Server, frames: Image) -> None:
        client = InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=PATIENCE_S)
        try:
            assert client.is_server_ready()
            with pytest.raises(InferenceServerException, match="API key is missing"):
                client.infer("tiny", [tensor(frames[np.newaxis])])
        finally:
            client.close()


def test_an_inference_request_appears_in_metrics_and_access_log(server: Server, frames: Image) -> None:
    content, headers = message(frames[np.newaxis])
    answer = httpx.post(
        f"{server.url}/v2/models/tiny/infer",
        content=gzip.compress(content, 1),
        headers={"X-API-Key": KEY, "X-Request-ID": "v2-17", "Content-Encoding": "gzip", **headers},
        timeout=PATIENCE_S,
        trust_env=False,
    )

    assert answer.status_code == 200
    assert "queue;dur=" in answer.headers["Server-Timing"]
    line = server.access_line("v2-17")
    assert (line["path"], line["status"]) == ("/v2/models/tiny/infer", 200)
    assert line["stages_ms"].keys() == {"receive", "queue", "inference"}  # type: ignore[attr-defined]
    metrics = httpx.get(f"{server.url}/metrics", trust_env=False).text
    assert 'limelight_request_seconds_count{status="200"}' in metrics
    assert 'limelight_stage_seconds_count{stage="respond"}' in metrics
