"""Clients that send too much, send too slowly, or disconnect: their answers, and that nothing leaks."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from tests.e2e.process import PATIENCE_S, Server, running
from tests.e2e.raw_client import RawClient, stopped_decoder
from tests.processes import decoders, descendants, until

pytestmark = pytest.mark.slow

LIMIT = 2_000_000


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"MAX_BODY_BYTES": str(LIMIT), "UPLOAD_TIMEOUT_S": "2", "DECODE_WORKERS": "1", "DECODE_TIMEOUT_S": "300"}
    with running(tiny_bundle, tmp_path_factory.mktemp("log") / "log.jsonl", settings) as server:
        yield server


def outcomes(server: Server) -> list[tuple[object, object]]:
    """Return the status and problem code of each prediction in the access log."""
    lines = (line for line in server.lines() if line["message"] == "request" and line["path"] == "/predict")
    return [(line["status"], line.get("code")) for line in lines]


class TestOversizedUpload:
    def test_a_declared_length_over_the_limit_is_refused_before_the_body_is_sent(self, server: Server) -> None:
        with RawClient(server.port) as client:
            client.post("Content-Length: 100000000", "Expect: 100-continue")
            answer = client.answer()

        assert (answer.status, answer.code, answer.headers["connection"]) == (413, "body_too_large", "close")

    @pytest.mark.parametrize("size", [LIMIT * 3 // 2, LIMIT * 5 // 2])
    def test_it_is_answered_while_the_client_is_still_sending(self, server: Server, size: int) -> None:
        with RawClient(server.port) as client:
            client.post("Transfer-Encoding: chunked", body=b"%x\r\n" % size + bytes(size) + b"\r\n0\r\n\r\n")
            answer = client.answer()
            closed = client.is_closed()

        assert (answer.status, answer.code, closed) == (413, "body_too_large", True)

    @pytest.mark.parametrize("length", [3 * (LIMIT + 1), None])
    def test_a_client_that_reads_only_after_a_slow_upload_gets_the_answer(
        self, server: Server, length: int | None
    ) -> None:
        """Python's ``http.client`` is one. Between two parts it pauses longer than a network does."""

        def parts() -> Iterator[bytes]:
            for _ in range(3):
                yield bytes(LIMIT + 1)
                time.sleep(2.5)

        headers = {} if length is None else {"Content-Length": str(length)}
        with closing(HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)) as client:
            client.request("POST", "/predict", parts(), headers, encode_chunked=length is None)
            answer = client.getresponse()

            assert (answer.status, json.load(answer)["code"]) == (413, "body_too_large")

    def test_a_client_that_does_not_stop_sending_is_disconnected(self, start: Callable[..., Server]) -> None:
        server = start(REQUEST_TIMEOUT_S="3", MAX_BODY_BYTES=str(LIMIT))

        def send_on() -> bool:
            try:
                client.send(b"more")
            except OSError:
                return True
            return False

        with RawClient(server.port) as client:
            client.post("Content-Length: 100000000")
            assert client.answer().status == 413
            until(send_on)


class TestFullService:
    @pytest.fixture
    def full(self, start: Callable[..., Server]) -> Iterator[Server]:
        server = start(MAX_QUEUE="0", DECODE_TIMEOUT_S="300")
        with stopped_decoder(server):
            yield server

    def test_a_client_that_waits_for_100_continue_gets_429_at_once(self, full: Server) -> None:
        with RawClient(full.port) as client:
            client.post("Content-Length: 1000000", "Expect: 100-continue")

            assert client.receive() == b"HTTP/1.1 429"

    @pytest.mark.parametrize("framing", ["Content-Length: 30000000", "Transfer-Encoding: chunked"])
    def test_a_client_that_sends_the_whole_clip_before_reading_gets_429(self, full: Server, framing: str) -> None:
        with RawClient(full.port) as client:
            client.post(framing)
            client.send(b"1c9c380\r\n" + bytes(30_000_000))
            answer = client.answer()

        assert (answer.status, answer.code, answer.headers["connection"]) == (429, "overloaded", "close")
        assert int(answer.headers["retry-after"]) >= 1
        assert full.metric("upload_bytes_count") == 1  # the clip that fills the service


class TestSlowClient:
    def test_a_client_that_stops_sending_gets_408_and_is_disconnected(self, server: Server) -> None:
        with RawClient(server.port) as client:
            client.post("Content-Length: 1000", body=b"some")
            answer = client.answer()

        assert (answer.status, answer.code, answer.headers["connection"]) == (408, "upload_timeout", "close")

    def test_a_client_that_never_finishes_its_headers_is_disconnected(self, server: Server) -> None:
        with RawClient(server.port) as client:
            client.send(b"POST /predict HTTP/1.1\r\nHost: lime")

            assert client.is_closed()

    def test_fifty_slow_uploads_do_not_keep_others_from_being_answered(self, server: Server, clip: bytes) -> None:
        served = threading.Event()

        def trickle(clients: list[RawClient]) -> None:
            while not served.wait(0.2):
                for client in clients:
                    with suppress(OSError):  # on a busy machine, the server may have given up on this one
                        client.send(b"x")

        with ExitStack() as opened:
            clients = [opened.enter_context(RawClient(server.port)) for _ in range(50)]
            for client in clients:
                client.post("Content-Length: 1000000")
            trickling = threading.Thread(target=trickle, args=[clients])
            trickling.start()
            try:
                until(lambda: server.metric("in_flight_requests") == 50)
                answers = [httpx.post(f"{server.url}/predict", content=clip, trust_env=False) for _ in range(5)]
            finally:
                served.set()
                trickling.join()

        assert [answer.status_code for answer in answers] == [200] * 5
        until(lambda: server.metric("in_flight_requests") == 0)


class TestDisconnectedClient:
    @pytest.fixture(autouse=True)
    def nothing_left_behind(self, server: Server, clip: bytes) -> Iterator[None]:
        """Check that a disconnected client leaves no process or descriptor behind, and costs no inference."""

        def count_resources() -> tuple[int, int]:
            descriptors = Path(f"/proc/{server.process.pid}/fd")
            return sum(map(len, descendants(server.process.pid))), len(list(descriptors.iterdir()))

        with httpx.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client:
            assert client.post("/predict", content=clip).status_code == 200
        until(lambda: not decoders(server.process.pid))
        before, inferences = count_resources(), server.metric("batch_size_sum")
        yield
        until(lambda: count_resources() <= before)
        assert server.metric("batch_size_sum") == inferences
        assert server.metric("in_flight_requests") == 0
        until(lambda: outcomes(server)[-1] == (499, None))  # the access line comes after the metrics

    @pytest.mark.parametrize("form", [False, True])
    def test_a_disconnect_during_the_upload_is_noticed(self, server: Server, clip: bytes, form: bool) -> None:
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' if form else b""
        media_type = "multipart/form-data; boundary=b" if form else "video/mp4"
        with RawClient(server.port) as client:
            client.post(f"Content-Type: {media_type}", f"Content-Length: {len(clip)}", body=head + clip[:5000])
            until(lambda: server.metric("in_flight_requests") == 1)

    def test_a_disconnect_while_the_clip_is_decoded_or_queued_is_noticed(self, server: Server, clip: bytes) -> None:
        with stopped_decoder(server), RawClient(server.port) as waiting:
            waiting.post(f"Content-Length: {len(clip)}", body=clip)
            until(lambda: server.metric("queue_depth") == 1)
