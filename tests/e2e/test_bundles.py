"""Bundles that are replaced while they are loaded, networks that overflow, and engines that break."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.model.bundle import VariantFile, file_sha256, read_manifest, write_manifest
from tests.e2e.process import PATIENCE_S, Server, running
from tests.processes import until
from tests.service.video.clips import encode
from tests.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.slow

RELOADS = 8
LARGE_BYTES = 2**27  # of a file that is hashed and not run, so that loading takes long enough to be disturbed
INFER = "/v2/models/tiny/infer"


def predict(server: Server, clip: bytes) -> httpx.Response:
    return httpx.post(f"{server.url}/predict", content=clip, timeout=PATIENCE_S, trust_env=False)


def infer(server: Server, *brightness: int) -> httpx.Response:
    """Send clips of one brightness each as binary tensors."""
    frames = np.stack([np.full((40, 224, 224, 3), value, np.uint8) for value in brightness])
    entry = {
        "name": "frames",
        "shape": frames.shape,
        "datatype": "UINT8",
        "parameters": {"binary_data_size": frames.nbytes},
    }
    head = httpx.Request("POST", server.url, json={"inputs": [entry]}).content
    headers = {"Inference-Header-Content-Length": str(len(head))}
    body = head + frames.tobytes()
    return httpx.post(f"{server.url}{INFER}", content=body, headers=headers, timeout=PATIENCE_S, trust_env=False)


def plain_clip(brightness: int) -> bytes:
    return encode([np.full((64, 64, 3), brightness, np.uint8)] * 5)


@pytest.fixture(scope="module")
def white() -> bytes:
    return plain_clip(255)


@pytest.fixture(scope="module")
def black() -> bytes:
    return plain_clip(0)


def limelight(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "400", "LIMELIGHT_PORT": "0"}
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=environment)


def version(answer: dict[str, Any]) -> str:
    return str(answer["model"]["version"])


class TestReplacedWhileLoading:
    def test_labels_and_weights_of_every_answer_are_of_one_bundle(self, tmp_path: Path, clip: bytes) -> None:
        bundles = [self.large_bundle(tmp_path, name, seed) for seed, name in enumerate(("a", "b"))]
        link = tmp_path / "bundle"
        link.symlink_to(bundles[0])
        answers: list[dict[str, Any]] = []
        over = threading.Event()
        with running(link, tmp_path / "log.jsonl", {"PRECISION": "fp32", "DEVICE": "cpu"}) as server:

            def ask() -> None:
                while not over.is_set():
                    answers.append(predict(server, clip).raise_for_status().json())

            def swap() -> None:
                turn = 0
                while not over.wait(0.02):
                    turn += 1
                    new = tmp_path / "new"
                    new.symlink_to(bundles[turn % 2])
                    new.replace(link)
                    server.process.send_signal(signal.SIGHUP)

            with ThreadPoolExecutor(4) as crowd:
                work = [crowd.submit(ask), crowd.submit(ask), crowd.submit(swap)]
                try:
                    until(lambda: self.reloads(server) >= RELOADS and len({version(each) for each in answers}) == 2)
                finally:
                    over.set()
                for task in work:
                    task.result()

        seen = {(version(each), tuple(np.round(each["probabilities"], 4))) for each in answers}
        labels = {(version(each), each["predictions"][0]["label"][0]) for each in answers}
        assert labels == {("a", "a"), ("b", "b")}
        assert len(seen) == 2, "a version answered with two networks"
        assert len({probabilities for _, probabilities in seen}) == 2

    @pytest.mark.parametrize("name", ["manifest.json", "model.fp32.onnx"])
    def test_a_pipe_in_place_of_a_file_keeps_no_reload_waiting(self, tmp_path: Path, clip: bytes, name: str) -> None:
        bundle = write_tiny_bundle(tmp_path / "bundle")
        with running(bundle, tmp_path / "log.jsonl", {}) as server:
            (bundle / name).unlink()
            os.mkfifo(bundle / name)
            server.process.send_signal(signal.SIGHUP)
            until(lambda: server.metric("last_reload_successful") == 0)
            assert predict(server, clip).status_code == 200

            (bundle / name).unlink()
            write_tiny_bundle(bundle, version="2")
            server.process.send_signal(signal.SIGHUP)
            until(lambda: server.metric("last_reload_successful") == 1)

            assert version(predict(server, clip).json()) == "2"

    def large_bundle(self, folder: Path, name: str, seed: int) -> Path:
        labels = [f"{name}{number}" for number in range(6)]
        bundle = write_tiny_bundle(folder / name, labels, version=name, precisions=["fp32", "int8"], seed=seed)
        os.truncate(bundle / "model.int8.onnx", LARGE_BYTES)
        manifest = read_manifest(bundle)
        large = VariantFile(file="model.int8.onnx", sha256=file_sha256(bundle / "model.int8.onnx"))
        write_manifest(bundle, manifest.model_copy(update={"precisions": manifest.precisions | {"int8": large}}))
        return bundle

    def reloads(self, server: Server) -> int:
        return server.log.read_text(encoding="utf-8").count('"bundle reloaded"')


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose network overflows for clips that are almost white, and for no other."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "bundle", overflow_above=0.8)


@pytest.fixture(scope="module")
def overflowing_server(overflowing: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(overflowing, tmp_path_factory.mktemp("log") / "log.jsonl", {}) as server:
        yield server


class TestOverflow:
    """A network that overflows answers no clip with numbers that are none."""

    def test_a_clip_is_answered_500_and_counted(self, overflowing_server: Server, white: bytes, black: bytes) -> None:
        before = overflowing_server.metric("inference_failures_total")
        bad, good = predict(overflowing_server, white), predict(overflowing_server, black)

        assert (bad.status_code, bad.json()["code"]) == (500, "internal_error")
        assert good.status_code == 200
        assert overflowing_server.metric("inference_failures_total") == before + 1
        assert overflowing_server.metric("ready") == 1
        (error,) = errors(overflowing_server, bad)
        assert "its outputs are not finite numbers; set LIMELIGHT_PRECISION" in str(error)

    def test_a_request_with_such_a_tensor_is_answered_500(self, overflowing_server: Server) -> None:
        bad, good = infer(overflowing_server, 0, 255, 0), infer(overflowing_server, 0, 0)

        assert (bad.status_code, bad.json()["code"]) == (500, "internal_error")
        assert good.status_code == 200
        assert len(errors(overflowing_server, bad)) == 1

    def test_the_command_line_says_it_in_a_sentence(self, overflowing: Path, white: bytes, tmp_path: Path) -> None:
        (tmp_path / "white.mp4").write_bytes(white)
        ended = limelight("predict", tmp_path / "white.mp4", "--bundle", overflowing, "--json")

        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.splitlines()[-1].startswith("limelight: the network overflows for this clip")
        assert "Traceback" not in ended.stderr

    def test_the_warm_up_finds_a_network_that_overflows_for_usual_clips(
        self, overflowing_server: Server, tmp_path: Path
    ) -> None:
        useless = write_tiny_bundle(tmp_path / "bundle", overflow_above=0.4)
        served, checked = limelight("serve", "--bundle", useless), limelight("doctor", "--bundle", useless)

        assert served.returncode == 2
        (sentence,) = served.stderr.splitlines()
        assert sentence.startswith(f"limelight: {useless}")
        assert "overflows on CPUExecutionProvider: its outputs are not finite numbers; choose another" in sentence
        assert checked.returncode == 1
        assert "overflows on CPUExecutionProvider" in checked.stdout

    def test_a_reload_keeps_the_old_bundle_if_the_new_one_overflows(
        self, overflowing_server: Server, overflowing: Path, black: bytes
    ) -> None:
        write_tiny_bundle(overflowing, version="2", overflow_above=0.4)
        overflowing_server.process.send_signal(signal.SIGHUP)
        until(lambda: overflowing_server.metric("last_reload_successful") == 0)

        assert predict(overflowing_server, black).json()["model"]["version"] == "1"


def errors(server: Server, answer: httpx.Response) -> list[dict[str, object]]:
    """Return the lines of level error about a request."""
    request_id = answer.json()["request_id"]
    until(lambda: any(each["message"] == "request" and each["request_id"] == request_id for each in server.lines()))
    return [line for line in server.lines() if line.get("request_id") == request_id and line["level"] == "error"]


class TestBrokenEngine:
    def test_the_server_survives_a_failed_batch_and_exits_if_every_batch_would_fail(
        self, tiny_bundle: Path, tmp_path: Path, clip: bytes
    ) -> None:
        with running(tiny_bundle, tmp_path / "log.jsonl", {}, program="tests.e2e.broken") as server:
            server.process.send_signal(signal.SIGUSR2)
            failed, answered = predict(server, clip), predict(server, clip)
            assert (failed.status_code, failed.json()["code"]) == (500, "internal_error")
            assert answered.status_code == 200
            assert server.metric("inference_failures_total") == 1

            server.process.send_signal(signal.SIGUSR1)
            assert predict(server, clip).status_code == 500
            assert server.process.wait(PATIENCE_S) == 1

        critical = [str(line["message"]) for line in server.lines() if line["level"] == "critical"]
        assert critical == ["the engine's thread has died", "the engine died; shutting down"]
