"""What one client can take from the others: requests, connections and the log."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import httpx
import pytest

from tests.conftest import REPOSITORY
from tests.deploy.gateway import Gateway, open_files
from tests.deploy.replicas import Fleet
from tests.processes import until

RATE, BURST = 10, 20  # of predictions, as in deploy/gateway/nginx.conf
OTHERS_BURST = 300  # of all other requests
PATHS = ["/", "/model", "/docs", "/nothing", "/metrics", "/grafana/", "/health/live"]
LINE_BYTES = 700
IDLERS = 4300
COMPOSE_FILE = REPOSITORY / "docker-compose.yml"


def flood(gateway: Gateway, address: str, path: str, number: int, **headers: str) -> list[httpx.Response]:
    """Send requests from an address as fast as four connections allow."""
    method = "POST" if path == "/predict" else "GET"
    with gateway.client(address) as client, ThreadPoolExecutor(4) as crowd:
        return list(crowd.map(lambda _: client.request(method, path, headers=headers), range(number)))


def passed(answers: list[httpx.Response]) -> int:
    return sum(answer.status_code != 429 for answer in answers)


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("10.0.1.1", "10.0.1.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:2::1", "2001:db8:0:3::1", False),
        ("::ffff:10.0.1.3", "::ffff:10.0.1.4", False),
    ],
)
def test_a_client_is_an_ipv4_address_or_an_ipv6_network(plain: Gateway, first: str, second: str, shared: bool) -> None:
    began = time.monotonic()
    let_in = passed(flood(plain, first, "/predict", 3 * BURST)) + passed(flood(plain, second, "/predict", 3 * BURST))
    more = RATE * (time.monotonic() - began) + 2

    assert let_in <= (BURST if shared else 2 * BURST) + more
    assert shared or let_in >= 2 * BURST


@pytest.mark.parametrize("path", PATHS)
def test_every_path_has_a_rate(plain: Gateway, path: str) -> None:
    answers = flood(plain, f"10.0.2.{PATHS.index(path)}", path, 2 * OTHERS_BURST)
    refused = [answer for answer in answers if answer.status_code == 429]

    assert refused
    assert passed(answers) >= OTHERS_BURST
    assert {(answer.json()["code"], answer.headers["Retry-After"]) for answer in refused} == {("rate_limited", "1")}


@pytest.mark.parametrize("noise", ["\x7f", '"', "\\", "\u00ff", "a"], ids=["DEL", "quote", "backslash", "Latin", "a"])
def test_a_line_of_the_log_stays_short_whatever_a_client_sends(plain: Gateway, noise: str) -> None:
    name = "n" * 128
    # Everything that clients choose and the log holds: the request line, and the two headers.
    path = noise.encode("latin-1") * 4000
    headers = b"X-Request-ID: %s\r\ntraceparent: %s\r\n" % (name.encode(), noise.encode("latin-1") * 8000)
    before = len(plain.lines())
    with closing(plain.connect()) as connection:
        connection.sendall(b"GET /%s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%s\r\n" % (path, headers))
        assert connection.recv(9) == b"HTTP/1.1 "
        with plain.client("10.0.3.1") as client:
            client.get("/model")
    until(lambda: len(plain.lines()) > before)

    assert max(map(len, plain.lines()[before:])) <= LINE_BYTES
    assert all(json.loads(line).keys() >= {"request_id", "request", "status"} for line in plain.lines()[before:])


def test_a_valid_traceparent_is_logged(plain: Gateway) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with plain.client("10.0.3.2") as client:
        name = client.get("/metrics", headers={"traceparent": trace}).headers["X-Request-ID"]
    until(lambda: [line for line in plain.log() if line["request_id"] == name])

    (line,) = [line for line in plain.log() if line["request_id"] == name]
    assert (line["traceparent"], line["request"], line["client"]) == (trace, "GET /metrics HTTP/1.1", "10.0.3.2")


def test_a_request_that_is_taken_back_is_a_line_of_json(secure: Gateway, replicas: Fleet) -> None:
    """nginx writes the status 000 if HTTP/2's stream was reset before there was an answer."""
    name = b"taken-back"
    head = b"\x83\x87\x04\x08/predict\x01\x01a\x00\x0cx-request-id" + bytes([len(name)]) + name  # HPACK
    stream = b"\x00\x00\x00\x01"
    settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    headers = bytes([0, 0, len(head), 1, 4]) + stream + head
    reset = bytes([0, 0, 4, 3, 0]) + stream + bytes([0, 0, 0, 8])
    with closing(secure.connect_with_tls("h2")) as connection:
        connection.sendall(settings + headers + reset)
        until(lambda: any(name.decode() in line for line in secure.lines()))

    (line,) = [line for line in secure.log() if line["request_id"] == name.decode()]
    assert line["status"] == 0


def test_refused_requests_do_not_fill_the_log(plain: Gateway) -> None:
    """The attack of 720 requests with 8 kB of control characters, which took 48 kB of log each."""
    address, number = "10.0.3.3", 1500
    before = len((plain.folder / "access.log").read_bytes())
    answers = flood(plain, address, "/model", number, traceparent="\x7f" * 8000)
    wiped = len((plain.folder / "access.log").read_bytes()) - before

    assert passed(answers) < number - 100
    assert wiped < (passed(answers) + 0.02 * number) * LINE_BYTES
    assert (plain.folder / "error.log").read_text(encoding="utf-8") == ""


def test_health_checks_do_not_fill_the_log(plain: Gateway) -> None:
    with plain.client("10.0.3.4") as client:
        assert client.get("/.alive").status_code == 200
        client.get("/model", headers={"X-Request-ID": "after-it"})
    until(lambda: any(line["request_id"] == "after-it" for line in plain.log()))

    assert [line for line in plain.log() if "/.alive" in line["request"]] == []


@pytest.mark.parametrize(
    "request_line", [b"GET / HTTP/x", b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999"]
)
def test_what_is_refused_before_the_rate_does_not_fill_the_logs_either(plain: Gateway, request_line: bytes) -> None:
    number = 300
    before = len(plain.lines())
    for _ in range(number):
        with closing(plain.connect()) as connection:
            connection.sendall(request_line + b"\r\n\r\n")
            assert connection.recv(9) == b"HTTP/1.1 "

    assert len(plain.lines()) - before < 0.02 * number
    assert (plain.folder / "error.log").read_text(encoding="utf-8") == ""


@pytest.mark.parametrize(("path", "bound"), [("/predict", 20), ("/model", 100)])
def test_a_client_may_have_so_many_requests_in_progress(plain: Gateway, path: str, bound: int) -> None:
    address = f"10.0.5.{bound}"
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nX-Client-Address: {address}\r\nContent-Length: 1000\r\n\r\n"
    with ExitStack() as stack, plain.client(address) as client:
        for _ in range(bound):
            stack.enter_context(closing(plain.connect())).sendall(head.encode() + b"slow")

        def refused() -> bool:
            client.post(path)
            time.sleep(0.1)  # below both rates
            return any((line["client"], line["status"]) == (address, 429) for line in plain.log())

        until(refused, patience_s=10)


def test_thousands_of_unfinished_requests_keep_nobody_out(plain: Gateway) -> None:
    with open_files(IDLERS + 500), ExitStack() as stack:
        idlers = [stack.enter_context(closing(plain.connect())) for _ in range(IDLERS)]
        for idler in idlers:
            idler.sendall(b"GET / HTTP/1.1\r\n")
        with plain.client("10.0.4.1") as client:
            statuses = [client.post("/predict", content=b"clip").status_code for _ in range(BURST)]

        assert set(statuses) == {200}
        assert "worker_connections" not in (plain.folder / "error.log").read_text(encoding="utf-8")


def test_the_gateways_memory_is_enough_for_all_its_connections(secure: Gateway) -> None:
    """The dearest ones: over TLS, after an answer, with a head that is as large as allowed and unfinished."""
    number, all_of_them = 300, 2 * 8192
    lines = b"".join(b"X-%d: %s\r\n" % (line, 7000 * b"a") for line in range(4))
    before = secure.memory()
    with open_files(number + 500), ExitStack() as stack:
        for _ in range(number):
            connection = stack.enter_context(closing(secure.connect_with_tls()))
            connection.sendall(b"GET /.alive HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n" + lines)
            assert connection.recv(9) == b"HTTP/1.1 "
        needed = (secure.memory() - before) / number * all_of_them
    (limit,) = re.findall(
        r"^  gateway:\n(?: {4}.*\n)*? {4}mem_limit: (\d+)g\b", COMPOSE_FILE.read_text(encoding="utf-8"), re.MULTILINE
    )

    assert 0.5 * 2**30 < needed < 0.8 * int(limit) * 2**30  # the kernel's buffers for sockets count as well
