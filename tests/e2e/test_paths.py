"""How paths are spelled: everything that depends on a path agrees about each spelling."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from tritonclient.http import InferenceServerClient, InferInput

from service.video.decoder import decode_clip
from tests.e2e.process import PATIENCE_S, Server, running
from tests.e2e.raw_client import Answer, RawClient, stopped_decoder
from tests.processes import until
from tests.tiny_bundle import LABELS, write_tiny_bundle

pytestmark = pytest.mark.slow

KEY = "secret"
PREFIX = "/limelight"
NAME = "org/tiny é 100%"

# Whether a POST to this path is a prediction, or None if the path has control characters.
SPELLINGS = {
    "/predict": True,
    "/%70redict": True,
    "/predict?a=%0a": True,
    "/predict?/v2/models": True,
    "/limelight/predict": True,
    "/limelight%2Fpredict": True,
    "/%6Cimelight/predict": True,
    "http://localhost/predict": True,
    "/v2/models/a/infer": True,
    "/v2/models/a/versions/1/infer": True,
    "/v2/models/org/a/infer": True,
    "/v2/models/org%2Fa/infer": True,
    "/v2/models/org/a/versions/1/infer": True,
    "/v2/models/%C3%A9%20%25/infer": True,
    "/v2%2Fmodels/a/infer": True,
    "/v2/models/../infer": True,  # for a model of this name, as dots have no meaning here
    "/predict%0A": None,
    "/predict%0d%0a": None,
    "/predict%00": None,
    "/%7fpredict": None,
    "/v2/models/a%0Ab/infer": None,
    "/v2/models/a/infer%0A": None,
    "/health/live%0A": None,
    "http://localhost/predict%0A": None,
    "/predict/": False,
    "//predict": False,
    "/./predict": False,
    "/Predict": False,
    "/predict%20": False,
    "/predict%2F": False,
    "/predict%3F": False,
    "/predict%25": False,
    "/predict%C2%85": False,
    "/predict%E2%80%A8": False,
    "/predict%FF": False,
    "/predict;a": False,
    "/limelight/limelight/predict": False,
    "/limelight//predict": False,
    "/v2/models/a/infer/": False,
    "/v2/models//a/Infer": False,
    "/v2/models/infer": False,
    "/v2/models/a/versions/1/infer/x": False,
    "/health/live": False,
    "/model": False,
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_bundle(tmp_path_factory.mktemp("bundle"))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"name": NAME}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {
        "API_KEYS": KEY,
        "ROOT_PATH": PREFIX,
        "MAX_BODY_BYTES": "20000000",
        "MAX_QUEUE": "0",
        "DECODE_TIMEOUT_S": "300",
    }
    with running(bundle, tmp_path_factory.mktemp("log") / "log.jsonl", settings) as server:
        yield server


def post(server: Server, path: str, *headers: str, method: str = "POST") -> Answer:
    with RawClient(server.port) as client:
        client.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode())
        return client.answer()


AUTHORIZED = f"X-API-Key: {KEY}"


@pytest.mark.parametrize("path", SPELLINGS)
def test_routes_keys_and_metrics_agree(server: Server, path: str) -> None:
    before = server.metric("request_seconds_count")
    anonymous = post(server, path, "Content-Length: 0")
    answer = post(server, path, AUTHORIZED, "Content-Length: 0")
    counted = server.metric("request_seconds_count") - before

    is_prediction = SPELLINGS[path]
    if is_prediction is None:
        assert (answer.status, answer.code, anonymous.status, counted) == (400, "bad_request", 400, 0)
    else:
        assert (answer.code in {"empty_body", "unknown_model", "invalid_tensor"}) == is_prediction
        assert counted == 2 * is_prediction
        assert (anonymous.status == 401) == (path != "/health/live")


@pytest.mark.parametrize("path", [path for path, is_prediction in SPELLINGS.items() if is_prediction is not None])
def test_every_body_is_limited(server: Server, path: str) -> None:
    answer = post(server, path, AUTHORIZED, "Content-Length: 20000001", "Expect: 100-continue")

    assert answer.headers["connection"] == "close"
    assert answer.status in {404, 405, 413}


def test_admission_checks_predictions_and_nothing_else(server: Server) -> None:
    with stopped_decoder(server, AUTHORIZED):
        refused = {path: post(server, path, AUTHORIZED, "Content-Length: 9").status == 429 for path in SPELLINGS}
    until(lambda: not server.metric("admitted_clips"))  # else the next test's clip could be refused

    assert refused == {path: is_prediction is True for path, is_prediction in SPELLINGS.items()}


def test_other_methods_are_no_predictions(server: Server) -> None:
    before = server.metric("request_seconds_count")
    for method in ("GET", "OPTIONS", "PUT", "BREW"):
        for path in ("/predict", "/v2/models/a/infer"):
            assert post(server, path, AUTHORIZED, method=method).status in {404, 405}
    assert httpx.head(f"{server.url}/predict", headers={"X-API-Key": KEY}, trust_env=False).status_code == 405

    assert server.metric("request_seconds_count") == before


class TestNamesOfModels:
    """A model whose name has a slash, a space, a percent sign and a letter that is not ASCII."""

    @pytest.fixture(params=[quote(NAME), quote(NAME, safe="")])
    def url(self, server: Server, request: pytest.FixtureRequest) -> str:
        return f"{server.url}/v2/models/{request.param}"

    @pytest.mark.parametrize("version", ["", "/versions/1"])
    def test_every_path_of_a_model_is_reachable(self, url: str, version: str) -> None:
        with httpx.Client(headers={"X-API-Key": KEY}, trust_env=False) as client:
            answers = [client.get(url + version + path) for path in ("", "/ready", "/config", "/stats")]
        metadata, ready, config, statistics = answers

        assert metadata.json()["name"] == ready.json()["name"] == config.json()["name"] == NAME
        assert statistics.json()["model_stats"][0]["name"] == NAME

    def test_tritons_client_can_infer(self, server: Server, clip: bytes) -> None:
        frames = decode_clip(clip).frames[None]
        tensor = InferInput("frames", list(frames.shape), "UINT8")
        tensor.set_data_from_numpy(frames)
        client = InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=PATIENCE_S)
        result = client.infer(NAME, [tensor], headers={"X-API-Key": KEY})
        client.close()

        assert result.as_numpy("probabilities").shape == (1, len(LABELS))

    @pytest.mark.parametrize(
        "path", ["x", "org/tiny", f"{quote(NAME)}/x", f"{quote(NAME)}/versions/2", "x/y/z", "", "/"]
    )
    def test_unknown_paths_are_answered_404(self, server: Server, path: str) -> None:
        assert post(server, f"/v2/models/{path}", AUTHORIZED, method="GET").status == 404

    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
    @pytest.mark.parametrize("version", ["", "/versions/1"])
    def test_inference_is_asked_for_by_post(self, url: str, version: str, method: str) -> None:
        answer = httpx.request(method, f"{url}{version}/infer", headers={"X-API-Key": KEY}, trust_env=False)

        assert (answer.status_code, answer.headers.get("Allow")) == (405, "POST")

    def test_the_statistics_of_all_models_keep_their_path(self, server: Server) -> None:
        assert b"model_stats" in post(server, "/v2/models/stats", AUTHORIZED, method="GET").body
