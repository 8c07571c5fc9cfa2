"""``limelight serve`` in a process of its own, with the tiny bundle, over real sockets."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.process import PATIENCE_S, Server, running
from tests.e2e.raw_client import RawClient
from tests.processes import until
from tests.service.isolation import kernel
from tests.tiny_bundle import LABELS, write_tiny_bundle


def assert_complete(answer: httpx.Response) -> None:
    body = answer.json()
    assert answer.status_code == 200
    assert len(body["probabilities"]) == len(LABELS)
    assert sum(body["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert len(body["frames"]) == len(body["attention"]["maps"]) == 40
    for rows in body["attention"]["maps"]:
        assert [len(row) for row in rows] == [7] * 7
        assert sum(map(sum, rows)) == pytest.approx(1, abs=1e-4)
    times = [frame["time_s"] for frame in body["frames"]]
    assert times == sorted(times)


class TestPredict:
    def test_form_and_raw_body_get_the_same_answer(self, client: httpx.Client, clip: bytes) -> None:
        form = client.post("/predict", files={"file": ("clip.mp4", clip)})
        raw = client.post("/predict", content=clip, headers={"Content-Type": "application/octet-stream"})

        assert_complete(form)
        assert_complete(raw)
        for part in ("model", "clip", "predictions", "probabilities", "attention", "frames"):
            assert form.json()[part] == raw.json()[part]

    def test_a_real_clip_is_answered(self, client: httpx.Client, shared: Path) -> None:
        clip = next(path for path in sorted((shared / "clips/ucf101/Basketball").iterdir()) if path.is_file())

        assert_complete(client.post("/predict", files={"file": clip.read_bytes()}))

    def test_several_clients_at_once_are_all_answered(self, client: httpx.Client, clip: bytes) -> None:
        with ThreadPoolExecutor(6) as clients:
            answers = list(clients.map(lambda _: client.post("/predict", files={"file": clip}), range(12)))

        for answer in answers:
            assert_complete(answer)
        assert len({str(answer.json()["probabilities"]) for answer in answers}) == 1


class TestRefusal:
    def test_an_upload_over_the_limit_is_refused(self, client: httpx.Client) -> None:
        answer = client.post("/predict", content=bytes(5_000_001))

        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")

    def test_a_streamed_upload_is_refused_once_it_is_over_the_limit(self, client: httpx.Client) -> None:
        answer = client.post("/predict", content=(bytes(1_000_000) for _ in range(20)))

        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")

    def test_a_file_that_is_not_a_video_is_refused(self, client: httpx.Client) -> None:
        answer = client.post("/predict", files={"file": ("clip.mp4", b"Dear service, " * 100)})

        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media")

    def test_a_truncated_clip_is_refused(self, client: httpx.Client, clip: bytes) -> None:
        answer = client.post("/predict", content=clip[:2000])

        assert (answer.status_code, answer.json()["code"]) == (422, "corrupt_clip")


class TestObservability:
    def test_the_health_endpoints_report_a_ready_server(self, client: httpx.Client) -> None:
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 200

    def test_the_metrics_can_be_parsed_and_name_every_stage(
        self, client: httpx.Client, server: Server, clip: bytes
    ) -> None:
        client.post("/predict", content=clip, headers={"X-Request-ID": "e2e-metrics"})
        server.access_line("e2e-metrics")  # the request has then been counted
        families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}

        assert {"limelight_request_seconds", "limelight_stage_seconds", "limelight_ready"} <= families.keys()
        assert families["limelight_ready"].samples[0].value == 1
        samples = families["limelight_stage_seconds"].samples
        counts = {sample.labels["stage"]: sample.value for sample in samples if sample.name.endswith("_count")}
        assert counts.keys() == {"receive", "decode_wait", "decode", "encode", "queue", "inference", "respond"}
        assert [stage for stage, count in counts.items() if count == 0] in ([], ["encode"])  # of frames=jpeg

    def test_the_access_log_is_json_with_the_request_id(
        self, client: httpx.Client, server: Server, clip: bytes
    ) -> None:
        began = time.monotonic()
        client.post("/predict", content=clip, headers={"X-Request-ID": "e2e-17"})

        line = server.access_line("e2e-17")
        assert (line["message"], line["path"], line["status"]) == ("request", "/predict", 200)
        assert 0 < float(str(line["duration_ms"])) <= 1000 * (time.monotonic() - began)
        assert "code" not in line

    def test_the_access_log_has_the_code_of_a_refusal(self, client: httpx.Client, server: Server) -> None:
        answer = client.post("/predict", content=b"no video", headers={"X-Request-ID": "e2e-18"})

        line = server.access_line("e2e-18")
        assert (line["status"], line["code"]) == (answer.status_code, answer.json()["code"])

    def test_a_path_cannot_write_lines_or_control_characters_into_the_log(
        self, client: httpx.Client, server: Server
    ) -> None:
        assert client.get("/%0A%7B%22%1B%7F").json()["code"] == "bad_request"
        client.get("/%7B%22%C2%9B2J%C2%85%E2%80%A8%ED%A0%80", headers={"X-Request-ID": "injected"})

        assert str(server.access_line("injected")["path"]).startswith('/{"\x9b2J\x85\u2028')
        assert server.log.read_text(encoding="utf-8").isascii()

    def test_the_openapi_document_lists_the_endpoints(self, client: httpx.Client) -> None:
        paths = client.get("/openapi.json").json()["paths"]

        assert {"/predict", "/health/live", "/health/ready", "/metrics", "/model"} <= paths.keys()


@pytest.mark.parametrize(
    "request_line", ["GET /model", "HEAD /", "GET /docs", "GET /none", "DELETE /predict", "POST /predict", "GET %"]
)
def test_no_answer_names_the_program_that_gives_it(server: Server, request_line: str) -> None:
    with RawClient(server.port) as client:
        client.send(f"{request_line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
        headers = client.answer(request_line.partition(" ")[0]).headers

    assert not {"server", "x-powered-by", "via"} & {name.lower() for name in headers}


def test_an_idle_connection_stays_open_for_longer_than_the_5_s_of_uvicorns_default(server: Server) -> None:
    with RawClient(server.port) as client:
        for pause_s in (0, 6):
            time.sleep(pause_s)
            client.send(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.answer("GET").status == 200


def test_variables_that_are_meant_for_other_programs_do_not_matter(tiny_bundle: Path, tmp_path: Path) -> None:
    # FastAPI and uvicorn read the first two, which clusters set for all programs.
    variables = {"OTEL_PROPAGATORS": "tracecontext,baggage,b3", "WEB_CONCURRENCY": "", "FORWARDED_ALLOW_IPS": ""}
    with running(tiny_bundle, tmp_path / "log.jsonl", {}, variables=variables) as server:
        assert httpx.get(f"{server.url}/health/ready", trust_env=False).status_code == 200


def test_the_server_raises_its_limit_of_open_files_as_far_as_it_may(tiny_bundle: Path, tmp_path: Path) -> None:
    few = ["sh", "-c", 'ulimit -S -n 200 && ulimit -H -n 400 && exec "$@"', "sh"]
    with running(tiny_bundle, tmp_path / "log.jsonl", {}, wrapper=few) as server:
        assert kernel.limits(server.process.pid)["Max open files"] == "400"


class TestSignals:
    def test_an_upload_that_is_under_way_at_sigterm_is_still_answered(
        self, start: Callable[..., Server], clip: bytes
    ) -> None:
        server = start(DRAIN_DELAY_S="0")

        def stopping_half_way() -> Iterator[bytes]:
            yield clip[: len(clip) // 2]
            until(lambda: server.metric("in_flight_requests") == 1)  # in the socket's buffer it is not accepted yet
            server.process.send_signal(signal.SIGTERM)
            until(server.refuses_connections)
            yield clip[len(clip) // 2 :]

        answer = httpx.post(f"{server.url}/predict", content=stopping_half_way(), timeout=PATIENCE_S, trust_env=False)

        assert_complete(answer)
        assert server.process.wait(PATIENCE_S) == 0

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_an_idle_server_stops_with_exit_code_0(self, start: Callable[..., Server], number: signal.Signals) -> None:
        server = start(DRAIN_DELAY_S="0")
        server.process.send_signal(number)

        assert server.process.wait(PATIENCE_S) == 0
        assert server.lines()  # every line is JSON


class TestFailedStart:
    """``limelight serve`` exits with 2 and prints the reason in one sentence."""

    def test_a_missing_bundle_is_reported(self, tmp_path: Path) -> None:
        assert self.startup_error(tmp_path / "none") == (
            f"limelight: {tmp_path / 'none' / 'manifest.json'} does not exist: {tmp_path / 'none'} is not a bundle; "
            "make one with `limelight-model export`"
        )

    def test_a_damaged_model_file_is_reported(self, tmp_path: Path) -> None:
        bundle = write_tiny_bundle(tmp_path / "bundle")
        with (bundle / "model.fp32.onnx").open("ab") as file:
            file.write(b"!")

        assert f"limelight: {bundle / 'model.fp32.onnx'} is damaged" in self.startup_error(bundle)

    def test_a_manifest_of_another_schema_is_reported(self, tmp_path: Path) -> None:
        bundle = write_tiny_bundle(tmp_path / "bundle")
        manifest = bundle / "manifest.json"
        manifest.write_text(
            manifest.read_text(encoding="utf-8").replace('"schema": 1', '"schema": 2'), encoding="utf-8"
        )

        assert f"limelight: {manifest} has schema 2" in self.startup_error(bundle)

    def test_an_unavailable_device_is_reported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LIMELIGHT_DEVICE", "cuda")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")

        assert "LIMELIGHT_DEVICE=cpu" in self.startup_error(write_tiny_bundle(tmp_path))

    def test_an_invalid_setting_is_reported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LIMELIGHT_BATCH_SIZES", "1,many")

        assert self.startup_error(tmp_path).startswith("limelight: LIMELIGHT_BATCH_SIZES is not valid: ")

    def test_an_occupied_port_is_reported(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            startup_error = self.startup_error(tmp_path, f"--port={port}")

        assert startup_error.startswith(f"limelight: cannot listen on 127.0.0.1:{port} (")
        assert "--port" in startup_error

    def startup_error(self, bundle: Path, *options: str) -> str:
        """Run a server that fails to start with exit code 2, and return its only line on standard error."""
        command = [sys.executable, "-m", "service.cli", "serve", "--bundle", str(bundle), "--port=0", *options]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        (sentence,) = ended.stderr.splitlines()
        assert ended.returncode == 2
        return sentence
