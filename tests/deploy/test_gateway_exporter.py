"""The exporter that counts the gateway's answers, as nginx and Prometheus use it."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.http.problems import KINDS
from tests.conftest import REPOSITORY
from tests.processes import until

PROGRAM = REPOSITORY / "deploy" / "gateway-exporter" / "exporter.py"
Counts = dict[tuple[str, str, str], float]


class Exporter:
    """A running exporter, and nginx's side of its socket."""

    def __init__(self, path: Path, port: int) -> None:
        self.path = path
        self._url = f"http://127.0.0.1:{port}/metrics"

    def text(self) -> str:
        return httpx.get(self._url, trust_env=False).raise_for_status().text

    def counts(self, *, zeros: bool = False) -> Counts:
        """Return the answers counted so far, by status, source and route."""
        (family,) = text_string_to_metric_families(self.text())
        samples = {
            (sample.labels["status"], sample.labels["source"], sample.labels["route"]): sample.value
            for sample in family.samples
        }
        return {labels: value for labels, value in samples.items() if value or zeros}

    def send(self, *messages: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nginx:
            nginx.connect(str(self.path))
            for message in messages:
                nginx.send(message)


def line(answer: str) -> bytes:
    """Return the datagram that nginx sends for an answer."""
    return f"<190>Nov 30 11:18:00 gateway: {answer}".encode()


@contextmanager
def running(path: Path) -> Iterator[Exporter]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-P", PROGRAM, path, "--port", str(port)])
    exporter = Exporter(path, port)

    def answers() -> bool:
        assert process.poll() is None
        with contextlib.suppress(httpx.TransportError, OSError):
            exporter.send(b"")
            return bool(exporter.text())
        return False

    try:
        until(answers)
        yield exporter
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    with running(tmp_path_factory.mktemp("gateway-log") / "socket") as exporter:
        yield exporter


def test_answers_are_counted_by_status_source_and_route(exporter: Exporter) -> None:
    before = exporter.counts()
    exporter.send(line("200 replica prediction"), line("429 gateway prediction"), line("429 gateway prediction"))
    exporter.send(line("404 gateway other"))
    expected = before | {
        ("200", "replica", "prediction"): before.get(("200", "replica", "prediction"), 0) + 1,
        ("429", "gateway", "prediction"): 2,
        ("404", "gateway", "other"): 1,
    }

    until(lambda: exporter.counts() == expected)


def test_every_series_exists_before_the_first_answer(exporter: Exporter) -> None:
    statuses = {status for status, _, _ in exporter.counts(zeros=True)}

    assert {str(kind.status) for kind in KINDS.values()} | {"200", "499", "502"} < statuses
    for source in ("gateway", "replica"):
        for route in ("prediction", "other"):
            assert {(status, source, route) for status in statuses} <= exporter.counts(zeros=True).keys()


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"\x00\xff" * 100,
        b"x" * 100_000,
        line("200 replica"),
        line("200 replica prediction\n"),
        line('200 replica "} 1\nx{a="'),
        line("2000 replica prediction"),
        line("٢٠٠ replica prediction"),
        line("200 somebody prediction"),
        b"200 replica prediction",
    ],
)
def test_a_line_of_another_form_is_ignored(exporter: Exporter, hostile: bytes) -> None:
    before = exporter.counts()
    exporter.send(hostile, line("503 gateway prediction"))  # the next one counts
    after = before | {
        ("503", "gateway", "prediction"): before.get(("503", "gateway", "prediction"), 0) + 1,
    }

    until(lambda: exporter.counts() == after)


def test_statuses_that_are_none_of_the_gateways_share_a_series(exporter: Exporter) -> None:
    number = len(exporter.counts(zeros=True))
    exporter.send(line("000 gateway other"), line("999 gateway other"))

    until(lambda: exporter.counts().get(("other", "gateway", "other")) == 2)
    assert len(exporter.counts(zeros=True)) == number


def test_every_user_may_write_to_the_socket(exporter: Exporter) -> None:
    assert exporter.path.stat().st_mode & 0o777 == 0o666


def test_an_exporter_that_was_killed_is_followed_by_another(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    for _ in range(2):
        with running(path) as exporter:
            exporter.send(line("200 replica prediction"))
            until(lambda exporter=exporter: exporter.counts() == {("200", "replica", "prediction"): 1})  # type: ignore[misc]
