"""Shutdown and reload: neither loses a request that the server has accepted."""

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.process import PATIENCE_S, Server, running, starting
from tests.e2e.raw_client import RawClient
from tests.processes import descendants, until
from tests.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.slow

CLIENTS = 4
QUICK_S = 5  # far less than loading takes in these tests, and enough on a busy machine
Start = Callable[..., Server]


def predict(server: Server, clip: bytes) -> httpx.Response:
    """Send a clip over a new connection."""
    return httpx.post(f"{server.url}/predict?attention=false", content=clip, timeout=PATIENCE_S, trust_env=False)


def get(server: Server, path: str) -> httpx.Response:
    return httpx.get(f"{server.url}{path}", timeout=PATIENCE_S, trust_env=False)


@contextmanager
def load(server: Server, clip: bytes) -> Iterator[list[httpx.Response]]:
    """Have ``CLIENTS`` clients send a clip again and again until the block ends. Yield their answers so far."""
    answers: list[httpx.Response] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                answers.append(predict(server, clip))
            except (httpx.ConnectError, httpx.ReadError):  # ReadError: the listener closed while it held the connection
                return

    with ThreadPoolExecutor(CLIENTS) as crowd:
        clients: list[Future[None]] = [crowd.submit(ask) for _ in range(CLIENTS)]
        try:
            until(lambda: len(answers) > CLIENTS)
            yield answers
        finally:
            over.set()
        for client in clients:
            client.result()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle")


@contextmanager
def loading(bundle: Path, log: Path) -> Iterator[Server]:
    """Run a server that loads its bundle until the file ``release`` is in the bundle's folder."""
    with starting(bundle, log, {}, program="tests.e2e.held_loading") as server:
        until((bundle / "waiting").exists)
        yield server


class TestShutdown:
    def test_under_load_every_accepted_request_is_answered(self, start: Start, clip: bytes) -> None:
        server = start(DRAIN_DELAY_S="2")
        with load(server, clip) as answers:
            server.process.send_signal(signal.SIGTERM)
            until(lambda: get(server, "/health/ready").status_code == 503)
            not_ready = get(server, "/health/ready")
            late = predict(server, clip)
            served = len(answers)
            assert server.process.wait(PATIENCE_S) == 0

        assert (not_ready.json()["code"], int(not_ready.headers["Retry-After"]) >= 1) == ("draining", True)
        assert (late.status_code, late.headers["Connection"]) == (200, "close")
        assert len(answers) > served  # some were answered during the drain delay
        answered = Counter(answer.status_code for answer in [*answers, late])
        accepted = [line for line in server.lines() if line["message"] == "request" and line["path"] == "/predict"]
        assert answered == Counter(line["status"] for line in accepted)
        assert answered.keys() <= {200, 503}
        assert answered[503] <= CLIENTS  # from connections that were open when the listener closed

    def test_a_request_on_an_open_connection_is_refused_once_the_listener_is_closed(
        self, start: Start, clip: bytes
    ) -> None:
        server = start(DRAIN_DELAY_S="0")
        with RawClient(server.port) as idle, RawClient(server.port) as uploading:
            uploading.post(f"Content-Length: {len(clip)}", body=clip[:1000])
            until(lambda: server.metric("in_flight_requests") == 1)
            server.process.send_signal(signal.SIGTERM)
            until(server.refuses_connections)
            idle.post(f"Content-Length: {len(clip)}", body=clip)
            turned_away = idle.answer()
            uploading.send(clip[1000:])
            accepted = uploading.answer()

        assert (turned_away.status, turned_away.code) == (503, "draining")
        assert int(turned_away.headers["retry-after"]) >= 1
        assert accepted.status == 200
        assert server.process.wait(PATIENCE_S) == 0

    def test_a_second_signal_ends_the_server_at_once(self, start: Start) -> None:
        server = start(DRAIN_DELAY_S="600")
        server.process.send_signal(signal.SIGTERM)
        until(lambda: get(server, "/health/ready").status_code == 503)
        server.process.send_signal(signal.SIGTERM)

        assert server.process.wait(PATIENCE_S) == 1

    def test_the_server_exits_when_its_engine_has_died(self, tiny_bundle: Path, tmp_path: Path, clip: bytes) -> None:
        with running(tiny_bundle, tmp_path / "log.jsonl", {}, program="tests.e2e.doomed") as server:
            server.process.send_signal(signal.SIGUSR1)
            answer = predict(server, clip)

            assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
            assert server.process.wait(PATIENCE_S) == 1

    def test_a_request_that_does_not_end_is_abandoned_after_the_longest_time_of_a_request(
        self, tiny_bundle: Path, tmp_path: Path, clip: bytes
    ) -> None:
        with endless(tiny_bundle, tmp_path / "log.jsonl", clip) as server:
            server.process.send_signal(signal.SIGTERM)

            assert server.process.wait(PATIENCE_S) == 0
            assert "shutdown did not finish in time; exiting without it" not in messages(server)

    def test_a_shutdown_that_does_not_end_is_cut_off(self, tiny_bundle: Path, tmp_path: Path, clip: bytes) -> None:
        with endless(tiny_bundle, tmp_path / "log.jsonl", clip) as server:
            server.process.send_signal(signal.SIGUSR1)
            server.process.send_signal(signal.SIGTERM)

            assert server.process.wait(PATIENCE_S) == 1
            assert messages(server)[-1] == "shutdown did not finish in time; exiting without it"


@contextmanager
def endless(bundle: Path, log: Path, clip: bytes) -> Iterator[Server]:
    """Run a server that is busy with a request which does not end."""
    settings = {"DRAIN_DELAY_S": "0", "REQUEST_TIMEOUT_S": "0.1"}
    with running(bundle, log, settings, program="tests.e2e.endless") as server, RawClient(server.port) as client:
        client.post(f"Content-Length: {len(clip)}", body=clip)
        until(lambda: server.metric("in_flight_requests") == 1)
        yield server


def messages(server: Server) -> list[object]:
    return [line["message"] for line in server.lines()]


class TestShutdownWhileLoading:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_server_exits_at_once_with_0_and_is_never_ready(
        self, bundle: Path, tmp_path: Path, number: signal.Signals
    ) -> None:
        with loading(bundle, tmp_path / "log.jsonl") as server:
            until(lambda: get(server, "/health/live").is_success)
            server.process.send_signal(number)

            assert server.process.wait(QUICK_S) == 0
            _, *messages = (line["message"] for line in server.lines() if line["level"] != "debug")
            assert messages == ["listening"]  # after the line about API keys

    def test_a_signal_while_the_decoders_start_leaves_no_process(self, tiny_bundle: Path, tmp_path: Path) -> None:
        with starting(tiny_bundle, tmp_path / "log.jsonl", {}) as server:
            until(lambda: descendants(server.process.pid))
            children = all_descendants(server)
            server.process.send_signal(signal.SIGTERM)

            assert server.process.wait(QUICK_S) == 0
            assert still_there(children) == []
            assert "ready" not in [line["message"] for line in server.lines()]  # each line is JSON, so no traceback

    def test_a_broken_bundle_that_is_found_after_the_signal_is_no_failure(self, bundle: Path, tmp_path: Path) -> None:
        with loading(bundle, tmp_path / "log.jsonl") as server:
            (bundle / "model.int8.onnx").write_bytes(b"?")
            server.process.send_signal(signal.SIGTERM)
            (bundle / "release").touch()

            assert server.process.wait(QUICK_S) == 0
            assert {line["level"] for line in server.lines()} <= {"info", "debug"}

    def test_a_second_signal_ends_the_server_with_1_and_the_decoders_follow(
        self, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        with starting(tiny_bundle, tmp_path / "log.jsonl", {}) as server:
            until(lambda: descendants(server.process.pid))
            children = all_descendants(server)
            server.process.send_signal(signal.SIGTERM)
            server.process.send_signal(signal.SIGINT)

            assert server.process.wait(QUICK_S) == 1
            until(lambda: not still_there(children))
            assert "Traceback" not in server.log.read_text(encoding="utf-8")

    def test_sighup_while_loading_loads_the_bundle_again_afterwards(self, bundle: Path, tmp_path: Path) -> None:
        with loading(bundle, tmp_path / "log.jsonl") as server:
            until(lambda: get(server, "/health/live").is_success)
            server.process.send_signal(signal.SIGHUP)
            (bundle / "release").touch()
            until(lambda: "bundle reloaded" in [line["message"] for line in server.lines()])

            assert "ready" in [line["message"] for line in server.lines()]

    def test_sigterm_during_a_reload_does_not_wait_for_it(self, bundle: Path, tmp_path: Path, clip: bytes) -> None:
        (bundle / "release").touch()
        settings = {"DRAIN_DELAY_S": "0"}
        with running(bundle, tmp_path / "log.jsonl", settings, program="tests.e2e.held_loading") as server:
            for name in ("release", "waiting"):
                (bundle / name).unlink()
            server.process.send_signal(signal.SIGHUP)
            until((bundle / "waiting").exists)
            assert predict(server, clip).status_code == 200
            children = all_descendants(server)
            server.process.send_signal(signal.SIGTERM)

            assert server.process.wait(QUICK_S) == 0
            assert still_there(children) == []

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_before_the_server_listens_ends_it_with_0(self, tiny_bundle: Path, number: signal.Signals) -> None:
        command = [sys.executable, "-X", "importtime", "-m", "service.cli", "serve", "--bundle", str(tiny_bundle)]
        with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            assert process.stdout is not None
            for line in process.stderr:
                if line.endswith(b" numpy\n"):  # one of the libraries that the command loads first
                    break
            process.send_signal(signal.SIGHUP)  # nothing to reload yet
            process.send_signal(number)

            assert (process.stdout.read(), process.stderr.read().count(b"Traceback")) == (b"", 0)
            assert process.wait(QUICK_S) == 0


def test_the_metrics_say_whether_the_last_reload_succeeded_and_when(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", version="1")
    began = time.time()
    with running(bundle, tmp_path / "log.jsonl", {}) as server:
        succeeded, loaded_at = last_reload(server)
        assert succeeded
        assert began < loaded_at < time.time()

        for name, content in (("manifest.json", "{}"), ("model.fp32.onnx", "damaged")):
            write_tiny_bundle(bundle)
            (bundle / name).write_text(content, encoding="utf-8")
            server.process.send_signal(signal.SIGHUP)
            until(lambda: not last_reload(server)[0])
            assert last_reload(server) == (False, loaded_at)

            write_tiny_bundle(bundle)
            server.process.send_signal(signal.SIGHUP)
            until(lambda: last_reload(server)[0])
            earlier, (_, loaded_at) = loaded_at, last_reload(server)
            assert loaded_at > earlier


def last_reload(server: Server) -> tuple[bool, float]:
    """Return the metrics of reloads: whether the last one succeeded, and the time of the last that did."""
    return server.metric("last_reload_successful") == 1, server.metric("last_reload_success_timestamp_seconds")


def test_reloading_the_bundle_under_load_loses_no_request(tmp_path: Path, clip: bytes) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", version="1")
    with running(bundle, tmp_path / "log.jsonl", {}) as server, load(server, clip) as answers:
        (bundle / "manifest.json").write_text("{}", encoding="utf-8")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: any("reload failed" in str(line["message"]) for line in server.lines()))
        after_bad_one = predict(server, clip)
        write_tiny_bundle(bundle, version="2")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: answers[-1].json()["model"]["version"] == "2")
        metrics = get(server, "/metrics").text

    assert after_bad_one.json()["model"]["version"] == "1"
    assert Counter(answer.status_code for answer in answers) == {200: len(answers)}
    assert metrics.count("limelight_model_info{") == 1
    assert 'version="2"' in metrics


def all_descendants(server: Server) -> list[int]:
    return [child for generation in descendants(server.process.pid) for child in generation]


def still_there(processes: list[int]) -> list[int]:
    return [process for process in processes if Path(f"/proc/{process}").exists()]
