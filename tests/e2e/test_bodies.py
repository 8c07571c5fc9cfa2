"""What bodies of requests cost a server: processor time and memory by what they contain, and in time by the clock."""

import gzip
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from tests.e2e.process import PATIENCE_S, Server, running
from tests.e2e.raw_client import RawClient
from tests.processes import until

pytestmark = pytest.mark.slow

INFER = "/v2/models/tiny/infer"
CLIP = [40, 224, 224, 3]
NUMBERS = 40 * 224 * 224 * 3


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"UPLOAD_TIMEOUT_S": "1", "MAX_QUEUE": "127"}
    with running(tiny_bundle, tmp_path_factory.mktemp("log") / "log.jsonl", settings) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client:
        yield client


def processor_s(server: Server) -> float:
    """Return the processor time that the server itself has taken."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(server: Server, what: str = "VmRSS") -> float:
    """Return the memory that the server itself takes, or by ``VmHWM`` has taken at most."""
    found = re.search(
        rf"^{what}:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found
    return int(found[1]) / 1000


def tensor(shape: Sequence[int], data: bytes = b"[]", more: bytes = b"") -> bytes:
    """Return a request for inference. ``data`` and ``more``, further fields, are JSON."""
    text = json.dumps({"inputs": [{"name": "frames", "shape": shape, "datatype": "UINT8", "data": "DATA"}]}).encode()
    return text.replace(b'"DATA"', data)[:-1] + more + b"}"


class TestClaims:
    """Requests that claim more than they contain."""

    @pytest.mark.parametrize(
        "body",
        [
            tensor([17, *CLIP]),
            tensor([128, *CLIP]),
            tensor([128, *CLIP], b"[" * 40 + b"1" + b"]" * 40),
            tensor([17, *CLIP], b"[" + b"1," * 100 + b"1]"),
            tensor([2**62, *CLIP]),
            tensor([0, *CLIP]),
            tensor([-1, *CLIP]),
            tensor([10**30, *CLIP]),
            tensor([1] * 2000),
            tensor([17, *CLIP], b"true"),
            tensor([17, *CLIP], b"null", b', "parameters": {"binary_data_size": 1000000000000}'),
        ],
        ids=lambda body: body[-60:].decode(),
    )
    def test_a_claimed_shape_costs_no_more_than_a_wrong_one(
        self, server: Server, client: httpx.Client, body: bytes
    ) -> None:
        def cost(sent: bytes) -> float:
            before = processor_s(server)
            answers = {client.post(INFER, content=sent).status_code for _ in range(20)}
            assert answers == {400}
            return processor_s(server) - before

        honest, before = cost(tensor([1, 2, 3])), memory_mb(server, "VmHWM")

        assert cost(body) < 3 * honest + 0.3
        assert memory_mb(server, "VmHWM") < before + 30

    @pytest.mark.parametrize(
        "body",
        [
            tensor([1, *CLIP], more=b', "x": [' + b"[]," * 340_000 + b"[]]"),
            tensor([1, *CLIP], more=b', "parameters": {' + b",".join(b'"%d": 1' % n for n in range(80_000)) + b"}"),
        ],
        ids=["arrays", "parameters"],
    )
    def test_a_megabyte_of_fields_is_refused_before_it_is_parsed(
        self, server: Server, client: httpx.Client, body: bytes
    ) -> None:
        before = processor_s(server)
        answers = [client.post(INFER, content=body).json() for _ in range(10)]

        assert {answer["code"] for answer in answers} == {"invalid_tensor"}
        assert "fields" in answers[0]["detail"]
        assert processor_s(server) - before < 0.5

    def test_numbers_of_the_claimed_length_are_read(self, client: httpx.Client) -> None:
        row = b"[" + b",".join([b"[1,2,3]"] * 224) + b"]"
        frame = b"[" + b",".join([row] * 224) + b"]"
        nested = b"[[" + b",".join([frame] * 40) + b"]]"
        flat = b"[" + b"1,2,3," * (NUMBERS // 3 - 1) + b"1,2,3]"
        answers = [
            client.post(INFER, content=gzip.compress(tensor([1, *CLIP], data), 1), headers={"Content-Encoding": "gzip"})
            for data in (nested, flat, nested[:-1], flat.replace(b"1,", b"", 1), nested + b"]")
        ]

        assert [answer.status_code for answer in answers] == [200, 200, 400, 400, 400]
        assert answers[0].json()["outputs"] == answers[1].json()["outputs"]

    def test_tensors_that_turn_out_bad_after_their_client_has_left_leave_no_traceback(
        self, server: Server, client: httpx.Client
    ) -> None:
        body = tensor([5, *CLIP], b"[" + b"1," * (5 * NUMBERS - 1) + b"256]")  # takes a second
        with RawClient(server.port) as leaver:
            leaver.post(f"Content-Length: {len(body)}", "X-Request-ID: leaver", path=INFER, body=body)
        assert server.access_line("leaver")["status"] == 499
        assert client.post(INFER, content=tensor(CLIP)).status_code == 400  # read after the other tensors

        assert [line for line in server.lines() if line["level"] == "error"] == []


class TestForms:
    SIZE = 8_000_000

    def form(self, boundary: bytes, content: bytes) -> tuple[bytes, dict[str, str]]:
        head = b"--" + boundary + b'\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}
        return head + content + b"\r\n--" + boundary + b"--\r\n", headers

    @pytest.mark.parametrize("boundary", [b"b", b"-" * 70])
    @pytest.mark.parametrize(
        "unit",
        [
            b"\r\n--BOUNDARY-",
            b"\r\n--BOUNDARY\r",
            b"\r\n--BOUNDARYx",
            b"\r\n--BOUNDARY \tx",
            b"\r\n--BOUNDAR",
            b"\r\n--",
            b"\r\n",
            b"\r",
            b" ",
        ],
    )
    def test_what_resembles_a_boundary_costs_little_more_than_other_bytes(
        self, server: Server, client: httpx.Client, boundary: bytes, unit: bytes
    ) -> None:
        def cost(content: bytes) -> float:
            body, headers = self.form(boundary, content)
            before = processor_s(server)
            assert client.post("/predict", content=body, headers=headers).json()["code"] == "unsupported_media"
            return processor_s(server) - before

        def least(content: bytes) -> float:
            return min(cost(content) for _ in range(3))  # the clock is coarse, and other work disturbs

        unit = unit.replace(b"BOUNDARY", boundary).replace(b"BOUNDAR", boundary[:-1])
        alike = (unit * (self.SIZE // len(unit) + 1))[: self.SIZE]

        assert least(alike) < 4 * least(bytes(self.SIZE)) + 0.05


class TestBusyReader:
    """Tensors that have arrived, while the thread that reads them does not get further."""

    BODY = bytes(11_000_000)
    FITTING = 2  # bodies of this size fit into UPLOAD_MEMORY_BYTES

    @pytest.fixture
    def busy(self, request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path: Path) -> Iterator[Server]:
        settings = {"UPLOAD_MEMORY_BYTES": "24000000", "MAX_BODY_BYTES": "12000000"} | request.param
        with running(tiny_bundle, tmp_path / "log.jsonl", settings, "tests.e2e.busy_reader") as server:
            yield server

    def send(self, server: Server, opened: ExitStack, clients: int) -> tuple[list[RawClient], float]:
        """Send bodies until each has arrived or is refused for lack of memory.

        Returns:
            The clients, and the number of bodies that have arrived.
        """

        def arrived() -> float:
            return server.metric("upload_bytes_count")

        def refused() -> float:
            return server.metric("rejected_total", code="overloaded")

        def upload(client: RawClient) -> None:
            with suppress(OSError):  # the server has answered already, and closed the connection
                client.post(f"Content-Length: {len(self.BODY)}", path=INFER, body=self.BODY)

        before, together = arrived(), arrived() + refused()
        sent = [opened.enter_context(RawClient(server.port)) for _ in range(clients)]
        with ThreadPoolExecutor(clients) as threads:
            list(threads.map(upload, sent))
        until(lambda: arrived() + refused() == together + clients)
        return sent, arrived() - before

    @pytest.mark.parametrize("busy", [{}], indirect=True)
    def test_bodies_wait_only_within_the_memory_for_bodies_and_only_while_their_clients_do(self, busy: Server) -> None:
        idle_mb = memory_mb(busy)
        with ExitStack() as opened:
            assert self.send(busy, opened, 12)[1] == self.FITTING
        until(lambda: busy.metric("in_flight_requests") == 0)  # the clients have disconnected
        with ExitStack() as opened:
            # The first body's thread has not ended, so there is room for one less.
            assert self.send(busy, opened, 6)[1] == self.FITTING - 1
            assert memory_mb(busy, "VmHWM") < idle_mb + 80  # 12 bodies are 132 MB
            os.kill(busy.process.pid, signal.SIGUSR1)
            until(lambda: self.send(busy, opened, 2)[1] == 2)

    @pytest.mark.parametrize("busy", [{"REQUEST_TIMEOUT_S": "5"}], indirect=True)
    def test_a_deadline_does_not_free_what_the_thread_still_uses(self, busy: Server) -> None:
        with ExitStack() as opened:
            codes = [Counter(client.answer().code for client in self.send(busy, opened, 6)[0]) for _ in range(2)]
            os.kill(busy.process.pid, signal.SIGUSR1)
            until(lambda: self.send(busy, opened, 2)[1] == 2)

        assert codes == [{"overloaded": 4, "deadline_exceeded": 2}, {"overloaded": 5, "deadline_exceeded": 1}]


@pytest.fixture(scope="module")
def slow(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose engine runs two clips a second."""
    settings = {"REQUEST_TIMEOUT_S": "5", "MAX_QUEUE": "30", "DEVICE": "cpu"}
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    with running(tiny_bundle, log, settings, "tests.e2e.slow_engine") as server:
        yield server


class TestRate:
    """How fast clips leave is learned from those that the engine has run."""

    @pytest.mark.parametrize("others", ["junk", "leavers"])
    def test_accepted_clips_are_answered_beside_clips_that_fail(self, slow: Server, clip: bytes, others: str) -> None:
        end = time.monotonic() + 12

        def post(content: bytes) -> Counter[int]:
            answers: Counter[int] = Counter()
            with httpx.Client(base_url=slow.url, timeout=PATIENCE_S, trust_env=False) as client:
                while time.monotonic() < end:
                    status = client.post("/predict?attention=false", content=content).status_code
                    answers[status] += 1
                    time.sleep(0.1 if status == 429 else 0)
            return answers

        def leave() -> None:
            while time.monotonic() < end:
                with RawClient(slow.port) as client:
                    client.post(f"Content-Length: {len(clip)}", body=clip)
                    time.sleep(0.3)

        assert httpx.post(f"{slow.url}/predict", content=clip, timeout=PATIENCE_S, trust_env=False).status_code == 200
        with ThreadPoolExecutor(14) as crowd:
            for _ in range(2):
                crowd.submit(post, b"junk" * 100) if others == "junk" else crowd.submit(leave)
            answers = sum(crowd.map(post, [clip] * 12), Counter[int]())

        assert answers.keys() <= {200, 429, 504}
        assert answers[200] >= 12  # the engine could run 24
        assert answers[504] <= 3  # on a busy machine, the engine may become slower than it was


class TestStoppedServer:
    """Clients that send while the server stands still, as in a paused container."""

    STOP_S = 2.5  # longer than UPLOAD_TIMEOUT_S

    def stop_for_a_while(self, server: Server) -> None:
        os.kill(server.process.pid, signal.SIGSTOP)
        time.sleep(self.STOP_S)
        os.kill(server.process.pid, signal.SIGCONT)

    @pytest.mark.parametrize("form", [False, True])
    @pytest.mark.parametrize("chunked", [False, True])
    def test_what_arrived_meanwhile_counts(self, server: Server, clip: bytes, form: bool, chunked: bool) -> None:
        head = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        body, media_type = clip, "video/mp4"
        if form:
            body, media_type = head + clip + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"
        framing, sent = f"Content-Length: {len(body)}", [body[:1000], body[1000:]]
        if chunked:
            framing = "Transfer-Encoding: chunked"
            sent = [b"%x\r\n" % len(part) + part + b"\r\n" for part in sent] + [b"0\r\n\r\n"]
        with RawClient(server.port) as client:
            client.post(f"Content-Type: {media_type}", framing, body=sent[0])
            until(lambda: server.metric("in_flight_requests") == 1)
            stopping = threading.Thread(target=self.stop_for_a_while, args=[server])
            stopping.start()
            time.sleep(0.5)
            client.send(b"".join(sent[1:]))
            stopping.join()

            assert client.answer().status == 200

    def test_many_large_uploads_arrive_meanwhile(self, server: Server) -> None:
        body = bytes(3_000_000)

        def send(client: RawClient) -> None:
            client.send(body[1000:])

        with ExitStack() as opened:
            clients = [opened.enter_context(RawClient(server.port)) for _ in range(20)]
            for client in clients:
                client.post(f"Content-Length: {len(body)}", body=body[:1000])
            until(lambda: server.metric("in_flight_requests") == len(clients))
            sending = [threading.Thread(target=send, args=[client]) for client in clients]
            os.kill(server.process.pid, signal.SIGSTOP)
            for thread in sending:
                thread.start()
            time.sleep(self.STOP_S)
            os.kill(server.process.pid, signal.SIGCONT)
            for thread in sending:
                thread.join()

            assert {client.answer().code for client in clients} == {"unsupported_media"}

    def test_a_client_that_stays_silent_is_refused_all_the_same(self, server: Server) -> None:
        with RawClient(server.port) as client:
            client.post("Content-Length: 1000", body=b"some")
            until(lambda: server.metric("in_flight_requests") == 1)
            self.stop_for_a_while(server)
            answer = client.answer()

        assert (answer.status, answer.code) == (408, "upload_timeout")
