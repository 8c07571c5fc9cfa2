"""Where the server listens: IPv4 and IPv6 addresses, and Unix sockets. The health check and the doctor ask it there.

curl is the outside oracle for what is listened on.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.cli.doctor import Finding, Verdict, examine
from service.settings import Settings
from tests.e2e.curl import curl
from tests.e2e.process import PATIENCE_S, Server, running
from tests.processes import until

pytestmark = pytest.mark.slow

DOCKERFILE = Path(__file__).parents[2] / "Dockerfile"
Start = Callable[..., Server]


@pytest.fixture(scope="module")
def everywhere(ipv6: None, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on every IPv4 and IPv6 address."""
    with running(tiny_bundle, tmp_path_factory.mktemp("log") / "log.jsonl", {"HOST": "::"}) as server:
        yield server


@pytest.fixture(scope="module")
def unix(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server on a Unix socket, and the socket's path."""
    folder = tmp_path_factory.mktemp("unix")
    settings = {"UNIX_SOCKET": str(folder / "limelight.sock"), "LOG_LEVEL": "debug"}
    with running(tiny_bundle, folder / "log.jsonl", settings) as server:
        yield server, folder / "limelight.sock"


def limelight(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "200"}
    environment |= {f"LIMELIGHT_{name}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "service.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=environment)


def health_check(**settings: object) -> subprocess.CompletedProcess[str]:
    """Run the health check of the image in a container with these settings."""
    found = re.search(
        r'^HEALTHCHECK .*\\\n +CMD (\["python", .*\])$', DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found
    _, *arguments = json.loads(found[1])
    environment = os.environ | {f"LIMELIGHT_{name}": str(value) for name, value in settings.items()}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)


def address_row(**settings: Any) -> Finding:
    """What the doctor finds at the service's address."""
    return next(finding for finding in examine(Settings(**settings), {}) if finding.subject == "address")


class TestDualStack:
    def test_ipv4_and_ipv6_are_answered_on_one_port(self, everywhere: Server) -> None:
        port = everywhere.port

        assert everywhere.addresses == [f"[::]:{port}", f"0.0.0.0:{port}"]
        for host in ("127.0.0.1", "[::1]", "localhost"):
            assert curl(f"http://{host}:{port}/health/ready") == '{"status":"ready"}200'

    def test_the_page_is_named_at_an_address_that_can_be_opened(self, everywhere: Server) -> None:
        pages = [line["page"] for line in everywhere.lines() if line["message"] == "listening"]

        assert pages == [f"http://[::1]:{everywhere.port}/", f"http://127.0.0.1:{everywhere.port}/"]

    @pytest.mark.parametrize("host", ["::", "::1", "0.0.0.0", "127.0.0.1", "localhost"])
    def test_doctor_and_health_check_find_it_by_any_of_its_addresses(self, everywhere: Server, host: str) -> None:
        row = address_row(host=host, port=everywhere.port)
        checked = health_check(HOST=host, PORT=everywhere.port)

        address = f"[{host}]" if ":" in host else host
        assert (row.verdict, row.found) == (
            Verdict.GOOD, f"a service is already running at {address}:{everywhere.port}",
        )  # fmt: skip
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, '{"status":"ready"}\n', "")

    def test_predict_asks_an_ipv6_address(self, everywhere: Server, clip_file: Path) -> None:
        for host in ("[::1]", "localhost"):
            answered = limelight("predict", clip_file, "--url", f"http://{host}:{everywhere.port}/")

            assert (answered.returncode, answered.stderr) == (0, "")

    def test_the_command_line_prints_the_doctors_finding(self, everywhere: Server, tiny_bundle: Path) -> None:
        examined = limelight("doctor", "--bundle", tiny_bundle, HOST="::", PORT=everywhere.port)

        assert examined.returncode == 0
        assert f"a service is already running at [::]:{everywhere.port}" in examined.stdout

    def test_a_second_server_names_the_address_in_use(self, everywhere: Server, tiny_bundle: Path) -> None:
        ended = limelight("serve", "--bundle", tiny_bundle, "--host", "::", "--port", everywhere.port)

        assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
        assert ended.stderr.startswith(f"limelight: cannot listen on [::]:{everywhere.port} (Address already in use")


class TestUnixSocket:
    def test_curl_is_answered_and_the_access_line_is_written(self, unix: tuple[Server, Path], clip_file: Path) -> None:
        server, path = unix
        headers = ["-H", "X-Request-ID: over-unix", "-H", "Content-Type: video/mp4"]
        answer = curl("--unix-socket", path, *headers, "--data-binary", f"@{clip_file}", "http://localhost/predict")

        assert server.addresses == [f"unix:{path}"]
        assert answer.endswith("200")
        assert server.access_line("over-unix")["status"] == 200

    def test_doctor_and_health_check_find_it(self, unix: tuple[Server, Path]) -> None:
        _, path = unix
        row = address_row(unix_socket=path)
        checked = health_check(UNIX_SOCKET=path)

        assert (row.verdict, row.found) == (Verdict.GOOD, f"a service is already running at unix:{path}")
        assert (checked.returncode, checked.stdout) == (0, '{"status":"ready"}\n')

    def test_predict_asks_it(self, unix: tuple[Server, Path], clip_file: Path) -> None:
        _, path = unix
        answered = limelight("predict", clip_file, "--url", f"unix:{path}")
        unanswered = limelight("predict", clip_file, "--url", f"unix:{path}.not")

        assert (answered.returncode, answered.stderr) == (0, "")
        assert unanswered.returncode == 2
        assert unanswered.stderr.startswith(f"limelight: no service answers at unix:{path}.not (")

    def test_a_second_server_leaves_it_to_the_first(self, unix: tuple[Server, Path], tiny_bundle: Path) -> None:
        _, path = unix
        ended = limelight("serve", "--bundle", tiny_bundle, "--unix-socket", path)

        assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
        assert ended.stderr.startswith(f"limelight: cannot listen on unix:{path} (Address already in use")
        assert curl("--unix-socket", path, "http://localhost/health/live").endswith("200")

    def test_a_killed_servers_socket_is_replaced_and_a_stopped_servers_is_removed(
        self, start: Start, tmp_path: Path
    ) -> None:
        path = tmp_path / "limelight.sock"
        killed = start(UNIX_SOCKET=str(path))
        killed.process.kill()
        killed.process.wait()
        assert path.is_socket()

        stopped = start(UNIX_SOCKET=str(path), DRAIN_DELAY_S="0")
        assert curl("--unix-socket", path, "http://localhost/health/ready").endswith("200")
        stopped.process.send_signal(signal.SIGTERM)

        assert stopped.process.wait(PATIENCE_S) == 0
        assert not path.exists()

    def test_demo_does_not_need_it(self, tiny_bundle: Path, tmp_path: Path) -> None:
        path = tmp_path / "limelight.sock"
        shown = limelight("demo", "--bundle", tiny_bundle, "--overlay", tmp_path / "demo.png", UNIX_SOCKET=path)

        assert (shown.returncode, path.exists()) == (0, False)


class TestHealth:
    def test_where_nothing_listens_it_exits_with_1_and_one_line(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        for where in (
            {"PORT": port, "HOST": "::"},
            {"UNIX_SOCKET": tmp_path / "none"},
            {"HOST": "no-such-host.invalid"},
        ):
            checked = health_check(**where)

            assert (checked.returncode, checked.stderr, len(checked.stdout.splitlines())) == (1, "", 1)
            assert checked.stdout.startswith("no service answers at ")

    def test_what_is_no_http_server_is_not_healthy(self) -> None:
        def greet() -> None:
            with stranger.accept()[0] as client:
                client.sendall(b"220 mail.example ESMTP\r\n")

        with socket.create_server(("127.0.0.1", 0)) as stranger, ThreadPoolExecutor(1) as talker:
            talker.submit(greet)
            checked = health_check(HOST="127.0.0.1", PORT=stranger.getsockname()[1])

        assert (checked.returncode, checked.stderr) == (1, "")

    def test_the_command_exits_with_1_while_the_service_drains(self, start: Start) -> None:
        server = start(DRAIN_DELAY_S="600")
        ready = limelight("health", PORT=server.port)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: health_check(PORT=server.port).returncode == 1)
        draining = limelight("health", PORT=server.port)

        assert (ready.returncode, ready.stdout) == (0, '{"status":"ready"}\n')
        assert (draining.returncode, json.loads(draining.stdout)["code"]) == (1, "draining")
