"""The Open Inference Protocol v2, tested with Triton's client and a running server."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from service.video.decoder import Image, decode_clip
from tests.e2e.process import PATIENCE_S, Server, running
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
    batch = frames[np.newaxis]
    described = {"name": "frames", "shape": batch.shape, "datatype": "UINT8"}
    header = json.dumps({"inputs": [described | {"parameters": {"binary_data_size": batch.nbytes}}]}).encode()
    answer = httpx.post(
        f"{server.url}/v2/models/tiny/infer",
        content=gzip.compress(header + batch.tobytes(), 1),
        headers={
            "X-API-Key": KEY,
            "X-Request-ID": "v2-17",
            "Content-Encoding": "gzip",
            "Inference-Header-Content-Length": str(len(header)),
        },
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
