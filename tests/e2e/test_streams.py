"""Standard streams that nobody reads, that are closed or full, and a terminal that is closed under the server."""

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.cli.health import ask
from service.http.listening import Endpoint
from tests.e2e.process import PATIENCE_S
from tests.processes import descendants, is_alive, until

pytestmark = pytest.mark.slow

PYTHON = [sys.executable, "-m", "service.cli"]
DEMO = pytest.param("demo", marks=pytest.mark.ci)  # each starts a server
QUICK_S = 20
LONG = "/" + 42 * "%E2%82%AC"  # the longest path that an access line shows whole


class Unread:
    """A running server whose standard output and error are a pipe that is read only on demand."""

    def __init__(self, process: subprocess.Popen[bytes], output: int, source: int, place: Path) -> None:
        self.process = process
        self.output, self.source = output, source  # the ends of the pipe
        self.text = b""
        self.client = httpx.Client(
            base_url="http://localhost", timeout=QUICK_S, transport=httpx.HTTPTransport(uds=str(place))
        )

    def lines(self) -> list[dict[str, Any]]:
        """Read what there is. Return every line that has been read completely."""
        while select.select([self.output], [], [], 0.2)[0] and (more := os.read(self.output, 2**16)):
            self.text += more
        return [json.loads(line) for line in self.text.splitlines(keepends=True) if line.endswith(b"\n")]

    def requests(self) -> int:
        """Return the number of access lines that have been read."""
        return sum(line["message"] == "request" for line in self.lines())

    def metric(self, name: str) -> float:
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        (value,) = (sample.value for family in families for sample in family.samples if sample.name == name)
        return value

    def ask_until(self, condition: Callable[[], object]) -> int:
        """Send requests, which are logged, until the condition holds. Return their number."""
        sent = 0
        give_up = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < give_up
            for _ in range(50):
                assert self.client.get(LONG).status_code == 404
                sent += 1
        return sent


@contextmanager
def unread(bundle: Path, folder: Path, **settings: str) -> Iterator[Unread]:
    """Run a server until the block ends, which begins when the server is ready."""
    place = folder / "socket"
    output, source = os.pipe()
    with serving(bundle, place, stdout=source, stderr=source, settings=settings) as process:
        server = Unread(process, output, source, place)
        with server.client:
            yield server
    os.close(source)
    with contextlib.suppress(OSError):
        os.close(output)


@contextmanager
def serving(
    bundle: Path, place: Path, *, command: list[str] = PYTHON, settings: Mapping[str, str] = {}, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server on a Unix socket until the block ends, which begins when the server is ready."""
    variables = {"DRAIN_DELAY_S": "0"} | dict(settings)
    environment = os.environ | {f"LIMELIGHT_{name}": value for name, value in variables.items()}
    arguments = ["serve", "--bundle", str(bundle), "--unix-socket", str(place)]
    process = subprocess.Popen([*command, *arguments], env=environment, **options)
    try:
        until(lambda: is_ready(place) or process.poll() is not None)
        assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.wait()


def is_ready(place: Path) -> bool:
    return status(place) == 200


def status(place: Path) -> int | None:
    """Return the status of the readiness check; None if nobody answers."""
    try:
        return ask(Endpoint("", 0, str(place)), "/health/ready")[0]
    except OSError:
        return None


DROPPED = "limelight_log_lines_dropped_total"


class TestALogThatNobodyReads:
    def test_requests_are_answered_and_dropped_lines_are_counted_in_their_place(
        self, tiny_bundle: Path, tmp_path: Path, clip: bytes
    ) -> None:
        with unread(tiny_bundle, tmp_path) as server:
            sent = server.ask_until(lambda: server.metric(DROPPED) > 100)
            answer = server.client.post("/predict?attention=false", content=clip)
            live = server.client.get("/health/live")
            dropped = server.metric(DROPPED)
            until(lambda: "lines of the log were dropped" in [line["message"] for line in server.lines()])
            server.client.get("/late")
            until(lambda: server.lines()[-1].get("path") == "/late")
            lines = server.lines()

        assert (answer.status_code, live.status_code) == (200, 200)
        requests = [line for line in lines if line.get("path") == httpx.URL(f"http://x{LONG}").path]
        (warning,) = (line for line in lines if line["level"] == "warning")
        assert warning["lines"] == dropped
        assert len(requests) + dropped == sent + 1  # and the prediction
        assert lines.index(requests[-1]) < lines.index(warning) == len(lines) - 2
        assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)

    @pytest.mark.parametrize(
        "signals",
        [
            [signal.SIGTERM],
            pytest.param([signal.SIGINT], marks=pytest.mark.ci),
            pytest.param([signal.SIGTERM, signal.SIGTERM], marks=pytest.mark.ci),
        ],
    )
    def test_signals_end_the_server_soon(
        self, tiny_bundle: Path, tmp_path: Path, signals: list[signal.Signals]
    ) -> None:
        delay = {"DRAIN_DELAY_S": "600"} if len(signals) > 1 else {}
        with unread(tiny_bundle, tmp_path, **delay) as server:
            server.ask_until(lambda: server.metric(DROPPED) > 0)
            for number in signals:
                server.process.send_signal(number)
                time.sleep(0.5)

            assert server.process.wait(QUICK_S) == len(signals) - 1
            assert server.lines()  # every line is JSON: Python has not been aborted

    def test_a_log_that_is_read_slowly_is_complete_after_the_end(self, tiny_bundle: Path, tmp_path: Path) -> None:
        with unread(tiny_bundle, tmp_path) as server:
            for _ in range(150):  # more than the pipe holds
                server.client.get(LONG)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: server.lines() and server.process.poll() == 0)

            assert server.requests() == 150

    def test_a_reader_that_goes_away_does_not_end_the_server(self, tiny_bundle: Path, tmp_path: Path) -> None:
        with unread(tiny_bundle, tmp_path) as server:
            os.close(server.output)
            server.ask_until(lambda: server.metric(DROPPED) > 100)
            assert server.client.get("/health/ready").status_code == 200
            server.process.send_signal(signal.SIGTERM)

            assert server.process.wait(QUICK_S) == 0

    def test_a_pipe_that_another_program_made_non_blocking_loses_nothing(
        self, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        with unread(tiny_bundle, tmp_path) as server:
            os.set_blocking(server.source, False)
            for _ in range(100):
                server.client.get(LONG)
            until(lambda: server.requests() == 100)
            assert server.metric(DROPPED) == 0


def test_a_full_disk_costs_whole_lines_and_their_number_is_logged(tiny_bundle: Path, tmp_path: Path) -> None:
    log, place = tmp_path / "log", tmp_path / "socket"

    def lines() -> list[dict[str, Any]]:
        """The lines of the log, but for the one that was cut off."""
        return [json.loads(line) for line in log.read_bytes().splitlines() if line.endswith(b"}")]

    with (
        log.open("wb") as file,
        serving(tiny_bundle, place, stdout=file) as process,
        httpx.Client(base_url="http://localhost", transport=httpx.HTTPTransport(uds=str(place))) as client,
    ):
        until(lambda: "ready" in [line["message"] for line in lines()])
        full = log.stat().st_size + 100  # less than a line
        _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
        answers = [client.get(LONG).status_code for _ in range(3)]
        until(lambda: log.stat().st_size == full)
        time.sleep(0.5)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
        answers.append(client.get("/late").status_code)
        until(lambda: lines()[-1].get("path") == "/late")

    assert answers == [404] * 4
    assert lines()[-2]["message"] == "lines of the log were dropped"
    assert lines()[-2]["lines"] == 3
    assert len(log.read_bytes().splitlines()) == len(lines()) + 1


def ended(redirections: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``limelight`` in a shell that redirects its standard streams."""
    command = ["sh", "-c", f'"$@" {redirections}', "sh", *PYTHON, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", cwd=folder, timeout=PATIENCE_S, check=False
    )


CLOSED = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1"]


class TestStreamsThatAreClosedOrFull:
    @pytest.mark.parametrize("redirections", CLOSED)
    def test_the_server_starts_and_serves_and_no_other_file_has_their_numbers(
        self, tiny_bundle: Path, tmp_path: Path, redirections: str, clip: bytes
    ) -> None:
        place = tmp_path / "socket"
        command = ["sh", "-c", f'exec "$@" {redirections}', "sh", *PYTHON]
        quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        with serving(tiny_bundle, place, command=command, **quiet) as process:
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(place)), timeout=PATIENCE_S) as client:
                assert client.post("http://localhost/predict", content=clip).status_code == 200
            family = [process.pid, *(child for generation in descendants(process.pid) for child in generation)]
            for pid in family:
                try:
                    streams = {str(Path(f"/proc/{pid}/fd/{descriptor}").readlink()) for descriptor in range(3)}
                except FileNotFoundError:  # a decoder that has ended
                    assert not is_alive(pid)
                    continue
                assert streams <= {"/dev/null", "/dev/full"}
            process.send_signal(signal.SIGTERM)
            assert process.wait(QUICK_S) == 0

    @pytest.mark.parametrize("redirections", [">&-", ">/dev/full 2>/dev/full"])
    @pytest.mark.parametrize("command", ["--help", "predict", "predict --json", "doctor", "health", DEMO])
    def test_a_command_whose_output_is_lost_says_so_and_fails(
        self, tiny_bundle: Path, tmp_path: Path, clip_file: Path, redirections: str, command: str
    ) -> None:
        name, *options = command.split()
        clips = [str(clip_file)] if name in {"predict", "demo"} else []
        bundle = ["--bundle", str(tiny_bundle)] if name in {"predict", "demo", "doctor"} else []
        lost = ended(redirections, name, *clips, *bundle, *options, folder=tmp_path)

        assert lost.returncode == 2
        if "2>" not in redirections:
            (sentence,) = lost.stderr.splitlines()
            assert sentence.startswith("limelight: standard output cannot be written (")

    @pytest.mark.parametrize("redirections", ["<&-", "2>&-", "2>/dev/full"])
    @pytest.mark.parametrize("command", ["predict", DEMO])
    def test_a_command_needs_neither_standard_input_nor_standard_error(
        self, tiny_bundle: Path, tmp_path: Path, clip_file: Path, redirections: str, command: str
    ) -> None:
        worked = ended(redirections, command, str(clip_file), "--bundle", str(tiny_bundle), folder=tmp_path)

        assert (worked.returncode, worked.stderr) == (0, "")
        assert "inference" in worked.stdout

    @pytest.mark.parametrize("redirections", ["2>&-", "2>/dev/full"])
    def test_an_error_that_cannot_be_printed_is_one_still(
        self, tiny_bundle: Path, tmp_path: Path, redirections: str
    ) -> None:
        assert ended(redirections, "predict", "none", "--bundle", str(tiny_bundle), folder=tmp_path).returncode == 1

    def test_an_error_is_one_line_that_no_terminal_obeys(self, tmp_path: Path) -> None:
        refused = ended("", "serve", "--port", "0", "--bundle", "a\n\x1b[31m\u2028b", folder=tmp_path)

        assert refused.returncode == 2
        (sentence,) = refused.stderr.splitlines()
        assert sentence.startswith(r"limelight: a\n\x1b[31m\u2028b/manifest.json does not exist")

    @pytest.mark.parametrize("options", [[], ["--json"]])
    def test_a_reader_that_has_read_enough_ends_a_command_without_a_word(
        self, tiny_bundle: Path, tmp_path: Path, clip_file: Path, options: list[str]
    ) -> None:
        clips = [str(clip_file)] * 3
        cut = ended("| head -c 1", "predict", *clips, "--bundle", str(tiny_bundle), *options, folder=tmp_path)

        assert (len(cut.stdout), cut.stderr) == (1, "")


@pytest.mark.parametrize("program", ["limelight", "limelight_model"])
def test_ctrl_c_while_a_command_is_being_imported_prints_nothing(program: str) -> None:
    code = f"""if True:
        import os, signal, sys
        import limelight_start

        class CtrlC:
            def find_spec(self, name, path=None, target=None):
                if name == "pydantic":
                    os.kill(os.getpid(), signal.SIGINT)

        sys.meta_path.insert(0, CtrlC())
        limelight_start.{program}()
    """
    command = [sys.executable, "-c", code, "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


class Terminal:
    """A terminal in which a server runs. What is printed there is read only on demand."""

    def __init__(self, screen: int, keyboard: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._screen, self._keyboard = screen, keyboard
        self.text = b""

    def count(self, message: str) -> int:
        """Read what there is. Return how many lines of the log have this message."""
        while select.select([self._screen], [], [], 0.1)[0]:
            self.text += os.read(self._screen, 2**16)
        return self.text.count(f'"message": "{message}"'.encode())

    def press(self, key: bytes) -> None:
        os.write(self._screen, key)

    def close(self) -> None:
        os.close(self._keyboard)
        os.close(self._screen)


@contextmanager
def terminal(bundle: Path, folder: Path, *wrapper: str) -> Iterator[Terminal]:
    """Run a server in a terminal until the block ends, which begins when the server is ready."""
    screen, keyboard = os.openpty()
    with serving(
        bundle,
        folder / "socket",
        command=[*wrapper, *PYTHON],
        settings={"DRAIN_DELAY_S": "600"},
        cwd=folder,
        stdin=keyboard,
        stdout=keyboard,
        stderr=keyboard,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        yield Terminal(screen, keyboard, process)


class TestATerminal:
    def test_closing_it_ends_the_server_but_a_signal_of_the_administrator_reloads(
        self, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        with terminal(tiny_bundle, tmp_path) as screen:
            children = [child for generation in descendants(screen.process.pid) for child in generation]
            screen.process.send_signal(signal.SIGHUP)
            until(lambda: screen.count("bundle reloaded") == 1)
            screen.close()

            assert screen.process.wait(QUICK_S) == 0
            until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))

    def test_closing_it_answers_the_accepted_requests_even_if_the_signal_comes_twice(
        self, tiny_bundle: Path, tmp_path: Path, clip: bytes
    ) -> None:
        with terminal(tiny_bundle, tmp_path) as screen, UnixClient(tmp_path / "socket") as client:
            head = b"POST /predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
            client.send(head % len(clip))
            assert client.receive().startswith(b"HTTP/1.1 100 ")  # it has been accepted
            client.send(clip[:1000])
            screen.close()
            until(lambda: status(tmp_path / "socket") is None)  # it has stopped listening
            screen.process.send_signal(signal.SIGHUP)  # as a shell does that is ended by the first one
            client.send(clip[1000:])

            assert client.receive().startswith(b"HTTP/1.1 200 ")
            assert screen.process.wait(QUICK_S) == 0

    def test_under_nohup_closing_it_changes_nothing_and_the_signal_reloads(
        self, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        log = tmp_path / "nohup.out"
        with terminal(tiny_bundle, tmp_path, "nohup") as screen:
            screen.close()
            screen.process.send_signal(signal.SIGHUP)
            until(lambda: '"bundle reloaded"' in log.read_text(encoding="utf-8"))

            assert is_ready(tmp_path / "socket")

    def test_one_that_is_stopped_with_ctrl_s_stops_neither_requests_nor_signals(
        self, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        with terminal(tiny_bundle, tmp_path) as screen:
            screen.press(b"\x13")
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(tmp_path / "socket")), timeout=QUICK_S) as client:
                for _ in range(100):
                    assert client.get(f"http://localhost{LONG}").status_code == 404
            screen.process.send_signal(signal.SIGINT)

            assert screen.process.wait(QUICK_S) == 0


class UnixClient:
    """One connection to a server's Unix socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> bytes:
        return self._socket.recv(2**16)
