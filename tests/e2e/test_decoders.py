"""A server whose decoders lie, hang, are stopped or cannot be started: clips are blamed for their own faults only."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.process import PATIENCE_S, Server, running
from tests.memory_group import pids_group
from tests.processes import decoders, descendants, until
from tests.service.isolation.hostile import take_over

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 1  # DECODE_TIMEOUT_S
# A clip that is decoded without fault, but not before its decoder has used some time.
SLOW = take_over("end = time.thread_time() + 0.4\nwhile time.thread_time() < end: pass")


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose decoders a clip can take over."""
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    settings = {"DECODE_TIMEOUT_S": str(LIMIT_S), "DECODE_WORKERS": "2"}
    with running(tiny_bundle, log, settings, program="tests.e2e.taken_over") as server:
        yield server


def predict(server: Server, clip: bytes) -> httpx.Response:
    return httpx.post(f"{server.url}/predict?attention=false", content=clip, timeout=PATIENCE_S, trust_env=False)


def infer_badly(server: Server) -> httpx.Response:
    return httpx.post(f"{server.url}/v2/models/tiny/infer", content=b"{}", timeout=PATIENCE_S, trust_env=False)


def outcome(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json().get("code")


def readiness(server: Server, path: str = "/health/ready") -> tuple[int, str | None]:
    return outcome(httpx.get(f"{server.url}{path}", timeout=PATIENCE_S, trust_env=False))


def fork_server(server: Server) -> int:
    ((pid, *_), *_) = descendants(server.process.pid)
    return pid


@contextmanager
def stopped(processes: Sequence[int]) -> Iterator[None]:
    """Stop processes until the block ends."""
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    yield
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):  # the service may have ended it meanwhile
            os.kill(pid, signal.SIGCONT)


def forged(report: str) -> bytes:
    """A clip that makes its decoder write ``report`` behind the frames."""
    return take_over(
        f"""
        memory, report = sys._getframe(3).f_locals["memory"], {report!r}.encode()
        memory[-65536 : len(report) - 65536] = report
        os._exit(0)
        """
    )


def decoded(**changed: object) -> str:
    facts = {"container": "mp4", "codec": "h264", "width": 64, "height": 48, "frames": 50, "duration_s": 2.0}
    facts |= {"coded_width": 64, "coded_height": 48}
    sampled = [{"index": k, "time_s": (k + 0.5) / 20} for k in range(40)]
    return json.dumps({"facts": {**facts, "rotation": 0, "damaged_frames": 0, **changed}, "sampled": sampled})


class TestWhatADecoderSays:
    def test_a_report_without_fault_is_answered(self, server: Server) -> None:
        assert outcome(predict(server, forged(decoded()))) == (200, None)

    @pytest.mark.parametrize(
        "report",
        [
            decoded(frames=10**30),
            decoded(width=-5),
            decoded(container="\x1b[2Jmp4"),
            decoded(rotation=45),
            '{"code": "corrupt_clip", "detail": "a\\nb"}',
            '{"code": "overloaded", "detail": "no code of a decoder"}',
            "[" * 60000,
        ],
    )
    def test_an_impossible_report_is_a_fault_that_is_logged_and_counted(self, server: Server, report: str) -> None:
        before = server.metric("decoder_failures_total", reason="decoder_fault")

        assert outcome(predict(server, forged(report))) == (422, "decoder_fault")
        assert server.metric("decoder_failures_total", reason="decoder_fault") == before + 1
        assert server.lines()[-1]["level"] == "error" or server.lines()[-2]["level"] == "error"

    def test_an_unexpected_exception_is_a_fault_that_is_logged_with_its_traceback(self, server: Server) -> None:
        assert outcome(predict(server, take_over("1 / 0"))) == (422, "decoder_fault")
        assert [line for line in server.lines() if "ZeroDivisionError" in str(line.get("traceback"))]


class TestTime:
    def test_a_clip_that_takes_too_much_processor_time_is_refused(self, server: Server) -> None:
        assert outcome(predict(server, take_over("while True: pass"))) == (422, "decode_timeout")

    def test_a_decoder_that_sleeps_fails_its_own_clip_only(self, server: Server, clip: bytes) -> None:
        restarts = server.metric("fork_server_restarts_total")
        with ThreadPoolExecutor(1) as crowd:
            sleeping = crowd.submit(predict, server, take_over("time.sleep(1000)"))
            while not sleeping.done():
                assert outcome(predict(server, clip)) == (200, None)

        assert outcome(sleeping.result()) == (503, "decoders_unavailable")
        assert server.metric("fork_server_restarts_total") == restarts

    @pytest.mark.parametrize("who", ["the server and its children", "the server", "the fork server", "the decoder"])
    def test_a_clip_is_not_blamed_for_processes_that_were_stopped(self, server: Server, who: str) -> None:
        with ThreadPoolExecutor(1) as crowd:
            answer = crowd.submit(predict, server, SLOW)
            until(lambda: decoders(server.process.pid))
            children = [pid for generation in descendants(server.process.pid) for pid in generation]
            processes = {
                "the server and its children": [server.process.pid, *children],
                "the server": [server.process.pid],
                "the fork server": [fork_server(server)],
                "the decoder": decoders(server.process.pid),
            }
            with stopped(processes[who]):
                time.sleep(3 * LIMIT_S)

        assert answer.result().json()["detail"] == "done"  # what the program of SLOW ends with

    def test_a_fork_server_that_stays_stopped_is_replaced(self, server: Server, clip: bytes) -> None:
        restarts = server.metric("fork_server_restarts_total")
        os.kill(fork_server(server), signal.SIGSTOP)

        assert outcome(predict(server, clip)) == (200, None)
        assert server.metric("fork_server_restarts_total") == restarts + 1

    def test_a_decoder_that_stays_stopped_is_replaced(self, server: Server) -> None:
        with ThreadPoolExecutor(1) as crowd:
            answer = crowd.submit(predict, server, SLOW)
            until(lambda: decoders(server.process.pid))
            os.kill(decoders(server.process.pid)[0], signal.SIGSTOP)

        assert answer.result().json()["detail"] == "done"


class TestReadiness:
    def test_an_idle_fork_server_that_dies_is_replaced_without_a_request(self, server: Server, clip: bytes) -> None:
        restarts = server.metric("fork_server_restarts_total")
        os.kill(fork_server(server), signal.SIGKILL)
        until(lambda: server.metric("fork_server_restarts_total") == restarts + 1)

        assert readiness(server) == (200, None)
        assert server.metric("decoders_available") == 1
        assert outcome(predict(server, clip)) == (200, None)

    def test_while_no_process_can_be_forked_the_service_is_not_ready_and_then_recovers(
        self, tiny_bundle: Path, tmp_path: Path, clip: bytes
    ) -> None:
        log = tmp_path / "log.jsonl"
        with pids_group() as group, running(tiny_bundle, log, {}, wrapper=group.entering) as server:
            assert outcome(predict(server, clip)) == (200, None)
            for kill_the_fork_server in (False, True):
                group.limit_processes(1)
                if kill_the_fork_server:
                    os.kill(fork_server(server), signal.SIGKILL)
                else:
                    assert outcome(predict(server, clip)) == (200, None)  # by the process that was forked ahead
                until(lambda: server.metric("decoders_available") == 0)

                refused = predict(server, clip)
                assert outcome(refused) == (503, "decoders_unavailable")
                assert int(refused.headers["Retry-After"]) >= 1
                for path in ("/health/ready", "/v2/health/ready"):
                    assert readiness(server, path) == (503, "decoders_unavailable")
                assert server.metric("ready") == 0
                assert outcome(infer_badly(server)) == (429, "overloaded")  # tensors are parsed in a thread
                group.limit_processes("max")
                until(lambda: readiness(server) == (200, None))

                assert outcome(infer_badly(server)) == (400, "invalid_tensor")
                assert server.metric("decoders_available") == 1
                assert outcome(predict(server, clip)) == (200, None)


class TestPlantedModules:
    """Nothing is imported from the folder in which a command is run, or to which relative search paths lead."""

    SEARCH_PATH = os.pathsep.join(["", str(REPOSITORY), ".", "planted"])

    @staticmethod
    def plant(folder: Path) -> Path:
        """Plant modules that would leave a trace in the file that is returned."""
        trace = folder / "trace"
        program = f"open({str(trace)!r}, 'a').write(__file__)"
        for home in (folder, folder / "planted"):
            (home / "service").mkdir(parents=True)
            for name in ("av.py", "numpy.py", "sitecustomize.py", "json.py", "service/__init__.py"):
                (home / name).write_text(program, encoding="utf-8")
        return trace

    @pytest.mark.parametrize("command", ["predict", "demo"])
    def test_a_command_runs_none_of_them(
        self, tiny_bundle: Path, tmp_path: Path, clip_file: Path, command: str
    ) -> None:
        trace = self.plant(tmp_path)
        bundle = os.path.relpath(tiny_bundle, tmp_path)
        variables: Mapping[str, str] = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "service.cli", command, "--bundle", bundle, clip_file],
            cwd=tmp_path, env=variables, capture_output=True, text=True, check=False,
        )  # fmt: skip

        assert ended.returncode == 0, ended.stderr
        assert not trace.exists()

    def test_a_fork_server_that_is_started_later_runs_none_of_them(
        self, tiny_bundle: Path, tmp_path: Path, clip: bytes
    ) -> None:
        variables = {"PYTHONPATH": self.SEARCH_PATH}
        folder = tmp_path / "here"
        folder.mkdir()
        log = tmp_path / "log.jsonl"
        with running(tiny_bundle, log, {}, variables=variables, folder=folder) as server:
            trace = self.plant(folder)
            os.kill(fork_server(server), signal.SIGKILL)

            assert outcome(predict(server, clip)) == (200, None)
            assert Path(f"/proc/{fork_server(server)}/cwd").readlink() == Path("/")
            assert not trace.exists()


@pytest.mark.parametrize("command", ["predict", "demo"])
def test_a_relative_path_to_python_is_found_from_any_folder(
    tiny_bundle: Path, tmp_path: Path, clip_file: Path, command: str
) -> None:
    (tmp_path / "here").symlink_to(sys.prefix)
    variables = os.environ | {"PATH": "here/bin", "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        [Path(sys.executable).name, "-m", "service.cli", command, "--bundle", tiny_bundle, clip_file],
        cwd=tmp_path, env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr
