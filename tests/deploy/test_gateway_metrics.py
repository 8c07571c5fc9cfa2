"""What nginx tells Prometheus of itself, and the lines that it sends to the exporter."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.gateway import Gateway, gateway, nginx
from tests.deploy.replicas import Fleet, fleet
from tests.processes import until


class Exporter:
    """The exporter's end of the socket."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "socket"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._path.chmod(0o666)
        self._socket.settimeout(30)

    def line(self) -> str:
        """Wait for the next line, and return what it says of an answer."""
        return self._socket.recv(4096).decode().partition(" gateway: ")[2]

    def close(self) -> None:
        self._path.unlink()
        self._socket.close()


@pytest.fixture(scope="module")
def replica() -> Iterator[Fleet]:
    nginx()
    with fleet(1) as one:
        yield one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("counted")


@pytest.fixture(scope="module")
def exporter(folder: Path) -> Iterator[Exporter]:
    exporter = Exporter(folder)
    yield exporter
    exporter.close()


@pytest.fixture(scope="module")
def counted(replica: Fleet, folder: Path, exporter: Exporter) -> Iterator[Gateway]:
    with gateway(folder, replica) as made, made.client("192.0.2.9") as client:
        until(lambda: client.get("/model").status_code == 200)  # the name of the replica is known
        while exporter.line() != "200 replica other":
            pass
        yield made


@pytest.mark.parametrize(
    ("method", "path", "size", "line"),
    [
        ("POST", "/predict", 10, "200 replica prediction"),
        ("POST", "/prefix/v2/models/tiny/infer", 10, "200 replica prediction"),
        ("POST", "/predict", 65 * 2**20, "413 gateway prediction"),
        ("POST", "/predict?x=/predict", 10, "200 replica prediction"),
        ("GET", "/?x=/predict", 0, "200 replica other"),
        ("GET", "/nothing", 0, "404 replica other"),
        ("GET", "/metrics", 0, "404 gateway other"),
        ("GET", "/grafana/", 0, "404 gateway other"),
    ],
)
def test_a_line_has_the_status_who_answered_and_what_was_asked_for(
    counted: Gateway, exporter: Exporter, method: str, path: str, size: int, line: str
) -> None:
    with counted.client() as client:
        client.request(method, path, content=bytes(size))

    assert exporter.line() == line


def test_a_prediction_that_no_replica_is_ready_for_is_the_gateways_answer(
    counted: Gateway, replica: Fleet, exporter: Exporter
) -> None:
    replica.replicas[0].ready = False
    try:
        with counted.client() as client:
            assert client.post("/predict", content=b"clip").status_code == 503
    finally:
        replica.replicas[0].ready = True

    assert exporter.line() == "503 gateway prediction"


def test_a_request_over_the_limits_is_the_gateways_answer(counted: Gateway, exporter: Exporter) -> None:
    with counted.client("192.0.2.7") as client:
        for _ in range(200):
            if client.post("/predict", content=b"clip").status_code == 429:
                break
            assert exporter.line() == "200 replica prediction"

        assert exporter.line() == "429 gateway prediction"


def test_the_gateway_serves_while_nobody_reads_its_lines(replica: Fleet, tmp_path: Path) -> None:
    with gateway(tmp_path, replica) as made, made.client() as client:
        until(lambda: client.get("/model").status_code == 200)
        silent = Exporter(tmp_path)
        assert {client.get("/model").status_code for _ in range(100)} == {200}  # more than the socket holds
        silent.close()
        assert {client.get("/model").status_code for _ in range(100)} == {200}
        following = Exporter(tmp_path)
        for _ in range(100):  # each worker finds it at its second answer
            client.get("/model")

        assert following.line() == "200 replica other"
        following.close()


def test_the_connections_are_counted_on_a_port_that_has_nothing_else(counted: Gateway) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{counted.metrics_port}", trust_env=False) as client:
        answer = client.get("/metrics")
        (family,) = text_string_to_metric_families(answer.text)

        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4"
        assert {sample.labels["state"] for sample in family.samples} == {"reading", "writing", "waiting"}
        assert sum(sample.value for sample in family.samples) >= 1
        assert client.get("/").status_code == 404
        assert client.post("/predict").status_code == 404


def test_the_port_for_clients_does_not_tell_of_the_gateway(counted: Gateway) -> None:
    with counted.client() as client:
        answer = client.get("/metrics", headers={"Host": f"gateway:{counted.metrics_port}"})

    assert answer.status_code == 404
