"""Decoder processes: their answers, crashes, timeouts and forged answers, and the end of their fork server."""

import asyncio
import contextlib
import fcntl
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from model_export.rendering.figure import render_clip
from service.environment import python_command
from service.errors import (
    ClipError,
    CorruptClip,
    DecoderCrashed,
    DecoderFault,
    DecodersError,
    DecodeTimeout,
    ResolutionTooLarge,
)
from service.isolation.processes import DecoderProcesses, start_decoders
from service.isolation.sandbox import Grants
from service.video.decoder import DecodeLimits, decode_clip
from tests.processes import decoders, descendants, until
from tests.service.isolation.hostile import take_over

pytestmark = pytest.mark.anyio

REPOSITORY = Path(__file__).resolve().parents[3]
Start = Callable[..., DecoderProcesses]
DecodersAndServer = tuple[DecoderProcesses, Callable[[], int]]
ENDLESS = take_over("while True: pass")
SIZE = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def fork_servers() -> list[int]:
    """The process ids of this process's children, which are fork servers."""
    return [child for children in descendants(os.getpid())[:1] for child in children]


def decoding() -> list[int]:
    """The process ids of the decoder processes that have a clip."""
    return decoders(os.getpid())


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def idle() -> None:
    """Wait until no process of an earlier test is left: a clip is answered before its process has ended."""
    until(lambda: decoding() == [])


async def eventually(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(until, condition)


class TestAnswers:
    @pytest.mark.parametrize(
        ("codec", "container"),
        [("libx264", "mp4"), ("libx265", "matroska"), ("mpeg4", "avi"), ("libvpx-vp9", "webm"), ("libsvtav1", "mp4")],
    )
    async def test_a_process_decodes_a_clip_as_decode_clip_does(
        self, hostile: DecoderProcesses, codec: str, container: str
    ) -> None:
        data = render_clip(frames=50, width=160, height=120, codec=codec, container=container).data
        there, here = await hostile.decode(data), decode_clip(data)

        assert (there.frames == here.frames).all()
        assert not there.frames.flags.writeable
        assert (there.facts, there.sampled) == (here.facts, here.sampled)

    @pytest.mark.parametrize("data", [b"no video " * 100, b"\0\0\0\x18ftypmp42", b""])
    async def test_a_process_refuses_a_clip_with_the_error_of_decode_clip(
        self, hostile: DecoderProcesses, data: bytes
    ) -> None:
        with pytest.raises(ClipError) as there:
            await hostile.decode(data)
        with pytest.raises(ClipError) as here:
            decode_clip(data)

        assert (type(there.value), str(there.value)) == (type(here.value), str(here.value))

    async def test_each_of_many_concurrent_clips_gets_its_own_answer(self, hostile: DecoderProcesses) -> None:
        clips = [render_clip(frames=frames, width=64, height=48).data for frames in range(41, 49)]
        answers = await asyncio.gather(*map(hostile.decode, clips))

        assert [answer.facts.frames for answer in answers] == list(range(41, 49))


class TestProcessesThatDoNotAnswer:
    @pytest.mark.parametrize(
        "program", ["while True: pass", "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"]
    )
    async def test_a_clip_that_takes_too_much_processor_time_times_out_and_its_process_is_killed(
        self, start_hostile: Start, program: str
    ) -> None:
        decoders = start_hostile(1)
        with pytest.raises(DecodeTimeout, match="1 s of processor time"):
            await decoders.decode(take_over(program))

        await eventually(lambda: decoding() == [])

    async def test_a_clip_may_take_as_long_as_a_busy_machine_needs(self, start_hostile: Start) -> None:
        decoders = start_hostile(0.5)
        with pytest.raises(CorruptClip, match="done"):
            await decoders.decode(take_over("time.sleep(2)"))

    async def test_a_process_that_neither_ends_nor_computes_is_replaced_once_and_fails_no_other_clip(
        self, start_hostile: Start, clip: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.isolation.processes.WALL_MARGIN_S", 0)
        decoders = start_hostile(1)
        servers = fork_servers()
        sleeping = asyncio.create_task(decoders.decode(take_over("time.sleep(1000)")))
        await eventually(decoding)

        assert (await decoders.decode(clip)).facts.frames == 50
        with pytest.raises(DecodersError, match="twice"):
            await sleeping
        assert fork_servers() == servers
        await eventually(lambda: decoding() == [])

    async def test_a_clip_whose_process_was_stopped_is_decoded_by_another(
        self, start_hostile: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.isolation.processes.WALL_MARGIN_S", 0)
        decoders = start_hostile(1)
        waiting = asyncio.create_task(decoders.decode(take_over("time.sleep(0.5)")))
        await eventually(decoding)
        os.kill(decoding()[0], signal.SIGSTOP)

        with pytest.raises(CorruptClip, match="done"):
            await waiting

    @pytest.mark.parametrize(("name", "sealed"), [("clip", SIZE | fcntl.F_SEAL_WRITE), ("answer", SIZE)])
    async def test_a_decoder_can_change_neither_its_clip_nor_the_size_of_its_answer(
        self, hostile: DecoderProcesses, name: str, sealed: int
    ) -> None:
        waiting = asyncio.create_task(hostile.decode(ENDLESS))
        await eventually(decoding)
        files = [file for file in Path("/proc/self/fd").iterdir() if file.resolve().name.startswith(f"memfd:{name} ")]
        seals = {fcntl.fcntl(int(file.name), fcntl.F_GET_SEALS) for file in files}
        waiting.cancel()

        assert seals == {sealed}

    async def test_cancelling_kills_the_process(self, hostile: DecoderProcesses) -> None:
        waiting = asyncio.create_task(hostile.decode(ENDLESS))
        await eventually(decoding)
        waiting.cancel()

        await eventually(lambda: decoding() == [])

    @pytest.mark.parametrize("program", ["ctypes.string_at(0)", "os._exit(0)", "os._exit(3)", "os.abort()"])
    async def test_a_clip_that_crashes_its_decoder_is_refused_and_the_next_is_decoded(
        self, hostile: DecoderProcesses, program: str, clip: bytes
    ) -> None:
        with pytest.raises(DecoderCrashed):
            await hostile.decode(take_over(program))

        assert (await hostile.decode(clip)).facts.frames == 50

    @pytest.mark.parametrize("program", ["1 / 0", "raise KeyboardInterrupt", "sys.exit()"])
    async def test_an_unexpected_exception_is_a_fault_and_logged_with_its_traceback(
        self, hostile: DecoderProcesses, caplog: pytest.LogCaptureFixture, program: str
    ) -> None:
        with pytest.raises(DecoderFault):
            await hostile.decode(take_over(program))

        (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert "Traceback" in record.__dict__["traceback"]

    async def test_killing_a_process_fails_its_own_clip_only(self, hostile: DecoderProcesses, clip: bytes) -> None:
        killed = asyncio.create_task(hostile.decode(ENDLESS))
        await eventually(decoding)
        (victim,) = decoding()
        other = asyncio.create_task(hostile.decode(clip))
        os.kill(victim, signal.SIGKILL)

        with pytest.raises(DecoderCrashed):
            await killed
        assert (await other).facts.frames == 50


def forged(report: str, end: str = "os._exit(0)") -> bytes:
    """A clip that makes its decoder write ``report`` behind the frames and then run ``end``."""
    return take_over(
        f"""
        memory, report = sys._getframe(3).f_locals["memory"], {report!r}.encode()
        memory[-65536 : len(report) - 65536] = report
        {end}
        """
    )


FACTS = {
    "container": "mp4", "codec": "h264", "width": 64, "height": 48, "coded_width": 64, "coded_height": 48,
    "frames": 50, "duration_s": 2.0, "rotation": 0, "damaged_frames": 0,
}  # fmt: skip
SAMPLED = [{"index": k, "time_s": (k + 0.5) / 20} for k in range(40)]


def report(facts: Mapping[str, object] = FACTS, sampled: object = SAMPLED, **changed: object) -> str:
    """The report on a decoded clip, with changed facts."""
    return json.dumps({"facts": {**facts, **changed}, "sampled": sampled})


def sampled(place: int, **changed: object) -> list[dict[str, object]]:
    """The sampled frames with one of them changed."""
    return [{**frame, **changed} if k == place else {**frame} for k, frame in enumerate(SAMPLED)]


class TestForgedReports:
    @pytest.mark.parametrize(
        "changed",
        [
            {},
            {"coded_width": 1, "coded_height": 9_500_000},
            {"coded_width": 9_500_000, "coded_height": 1},
            {"width": 16, "height": 9_500_000},
            {"width": 9_500_000, "height": 16},
            {"frames": 20_000},
            {"frames": 1, "sampled": [{**frame, "index": 0} for frame in SAMPLED]},
            {"duration_s": 600.0},
            {"damaged_frames": 40},
            *({"rotation": degrees} for degrees in (90, 180, 270)),
        ],
    )
    async def test_a_valid_report_is_accepted(self, hostile: DecoderProcesses, changed: dict[str, Any]) -> None:
        facts = (await hostile.decode(forged(report(**changed)))).facts

        assert asdict(facts) == FACTS | {name: value for name, value in changed.items() if name != "sampled"}

    @pytest.mark.parametrize(("text", "error"), [(report(), None), ("nonsense", DecoderFault), ("", DecoderCrashed)])
    async def test_a_process_that_closes_its_channel_is_killed_even_if_it_continues(
        self, hostile: DecoderProcesses, text: str, error: type[ClipError] | None
    ) -> None:
        with pytest.raises(error) if error else contextlib.nullcontext():
            await hostile.decode(forged(text, "os.close(3); time.sleep(1000)"))

        await eventually(lambda: decoding() == [])

    @pytest.mark.parametrize(
        "text",
        [
            "[" * 60000,
            "{}",
            report(sampled=[]),
            report(sampled=[*SAMPLED, SAMPLED[-1]]),
            report(sampled=[0] * 20000),
            '{"code": "internal_error", "detail": "not a code of a ClipError"}',
            '{"code": "decoder_fault", "detail": "not a code of a decoder"}',
            '{"code": "decoder_crashed", "detail": "not a code of a decoder"}',
            '{"code": "corrupt_clip", "detail": "\\ud800"}',
            '{"code": "corrupt_clip", "detail": ""}',
            '{"code": "corrupt_clip", "detail": "' + "a" * 501 + '"}',
            *(json.dumps({"code": "corrupt_clip", "detail": f"a{c}b"}) for c in "\n\0\x1b\x85\u2028\u202e\ue000"),
            '{"failure": 1}',
            '{"failure": "not a traceback of the service"}',
            *(report(container=name) for name in ("", "hls", "mov,mp4,m4a,3gp,3g2,mj2", "mp4\n", "a" * 60000)),
            *(report(codec=name) for name in ("", "png", "h264\x1b[2J")),
            *(report(width=size) for size in (0, -5, 2**31, 10**30, 64.0, "64")),
            *(report(height=size) for size in (0, -5, 2**31, 10**30, 64.0, "64")),
            *(report(coded_width=size) for size in (0, -5, 2**31, 10**30, 64.0, "64")),
            *(report(coded_height=size) for size in (0, -5, 2**31, 10**30, 64.0, "64")),
            report(width=9_500_000, height=17),
            report(coded_width=9_500_000, coded_height=2),
            report(width=-64, height=-48),
            *(report(frames=frames) for frames in (0, -1, 20_001, 10**30, 10**4000, "50", True, None)),
            *(report(duration_s=seconds) for seconds in (float("nan"), float("inf"), 0, -1.0, 600.1, 1e300)),
            report().replace("2.0", "1e999"),
            *(report(rotation=degrees) for degrees in (-90, 1, 45, 360, 10**30)),
            *(report(damaged_frames=frames) for frames in (-1, 41)),
            *(report(sampled=sampled(0, index=index)) for index in (-7, 2, 10**30)),
            report(sampled=sampled(39, index=50)),
            *(report(sampled=sampled(0, time_s=seconds)) for seconds in (-1e300, 0.0, 0.2, float("nan"))),
            report(sampled=sampled(39, time_s=2.01)),
        ],
    )  # fmt: skip
    async def test_an_invalid_report_is_a_fault_and_logged(
        self, hostile: DecoderProcesses, caplog: pytest.LogCaptureFixture, text: str
    ) -> None:
        with pytest.raises(DecoderFault) as error:
            await hostile.decode(forged(text))

        assert str(error.value).isprintable()
        (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert len(str(record.__dict__)) < 20_000

    async def test_the_log_names_every_fact_that_is_out_of_range(
        self, hostile: DecoderProcesses, caplog: pytest.LogCaptureFixture
    ) -> None:
        facts = {"container": "hls", "codec": "png", "width": 0, "frames": 0, "duration_s": 0.0, "rotation": 1}
        facts |= {"height": 1, "coded_width": 0, "coded_height": 1, "damaged_frames": 41}
        with pytest.raises(DecoderFault):
            await hostile.decode(forged(report(facts, sampled(0, time_s=0.0))))

        (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert record.__dict__["reason"] == (
            "out of range: container, codec, width and height, coded_width and coded_height, frames, duration_s, "
            "rotation, damaged_frames, index, time_s"
        )


@pytest.fixture
def own(start_hostile: Start) -> Iterator[DecodersAndServer]:
    """Decoders for one test, with a time limit that no busy machine reaches, and their fork server's process id."""
    others = set(fork_servers())

    def pid() -> int:
        (server,) = set(fork_servers()) - others
        return server

    with contextlib.closing(start_hostile(60)) as decoders:
        yield decoders, pid


@pytest.mark.slow
class TestForkServer:
    async def test_a_clip_is_decoded_although_the_process_forked_ahead_was_killed(
        self, own: DecodersAndServer, clip: bytes
    ) -> None:
        decoders, pid = own
        (waiting,) = descendants(pid())[0]
        os.kill(waiting, signal.SIGKILL)
        await eventually(lambda: not Path(f"/proc/{waiting}").exists())

        assert (await decoders.decode(clip)).facts.frames > 0

    async def test_no_clip_starts_before_the_process_of_a_cancelled_one_has_ended(
        self, start_hostile: Start, clip: bytes
    ) -> None:
        decoders = start_hostile(60, "tests.service.isolation.slow")
        waiting = asyncio.create_task(decoders.decode(ENDLESS))
        await eventually(decoding)
        (killed,) = decoding()
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting

        assert (await decoders.decode(clip)).facts.frames == 50
        assert not Path(f"/proc/{killed}").exists()

    async def test_the_fork_server_starts_even_if_the_limits_exclude_its_warm_up_clip(self, clip: bytes) -> None:
        limits = DecodeLimits(max_pixels=1, max_frames=1, max_duration_s=0.01)
        processes = DecoderProcesses(limits, memory_bytes=2**31)
        with contextlib.closing(processes), pytest.raises(ResolutionTooLarge):
            await processes.decode(clip)

    async def test_a_clip_is_decoded_again_when_the_fork_server_dies(
        self, own: DecodersAndServer, clip: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        decoders, pid = own
        first = pid()
        interrupted = take_over(f"if SERVER == {first}: time.sleep(1000)")  # sleeps at the first attempt only
        waiting = asyncio.create_task(decoders.decode(interrupted))
        await eventually(decoding)
        orphans = [child for generation in descendants(first) for child in generation]
        os.kill(first, signal.SIGKILL)

        with pytest.raises(CorruptClip, match="done"):
            await waiting
        assert (await decoders.decode(clip)).facts.frames == 50
        assert pid() != first
        assert "a decoder process was silent for too long" not in caplog.messages
        await eventually(lambda: not any(Path(f"/proc/{orphan}").exists() for orphan in orphans))

    async def test_a_clip_is_decoded_while_a_fork_server_is_taking_its_time_to_end(
        self, start_hostile: Start, clip: bytes
    ) -> None:
        others = set(fork_servers())
        decoders = start_hostile(60, "tests.service.isolation.leaving")
        (server,) = set(fork_servers()) - others
        os.kill(server, signal.SIGUSR1)
        await asyncio.sleep(0.5)  # that the service begins to close it cannot be seen from outside

        assert (await decoders.decode(clip)).facts.frames == 50

    async def test_clips_wait_while_the_fork_server_cannot_take_more(
        self, start_hostile: Start, clip: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its socket has room for some hundred; here for a few, so that fewer clips are needed."""
        socketpair = socket.socketpair

        def small(*arguments: int) -> tuple[socket.socket, socket.socket]:
            ours, theirs = socketpair(*arguments)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            return ours, theirs

        monkeypatch.setattr(socket, "socketpair", small)
        decoders = start_hostile(60)
        answers = await asyncio.gather(*(decoders.decode(clip) for _ in range(30)))

        assert [answer.facts.frames for answer in answers] == [50] * 30

    async def test_a_clip_whose_fork_server_dies_twice_is_not_blamed_for_it(self, own: DecodersAndServer) -> None:
        decoders, pid = own
        killed: list[int] = []

        def next_server_is_decoding() -> bool:
            """One child decodes and one waits. While a fork server starts, it has one child at most."""
            with contextlib.suppress(ValueError, IndexError):  # it is being replaced
                return pid() not in killed and len(descendants(pid())[0]) == 2
            return False

        waiting = asyncio.create_task(decoders.decode(ENDLESS))
        for _ in range(2):
            await eventually(next_server_is_decoding)
            killed.append(pid())
            os.kill(killed[-1], signal.SIGKILL)

        with pytest.raises(DecodersError, match="twice"):
            await waiting

    async def test_a_fork_server_that_dies_while_idle_is_replaced_before_the_next_clip(
        self, own: DecodersAndServer, clip: bytes
    ) -> None:
        decoders, pid = own
        first = pid()
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: decoders.problem)
        await eventually(lambda: not decoders.problem)

        assert pid() != first
        assert (await decoders.decode(clip)).facts.frames == 50

    async def test_a_fork_server_that_does_not_answer_is_replaced_and_fails_no_clip(
        self, own: DecodersAndServer, clip: bytes
    ) -> None:
        decoders, pid = own
        first = pid()
        os.kill(first, signal.SIGSTOP)

        async with asyncio.timeout(60):  # half of what the clip's own process might take
            assert (await decoders.decode(clip)).facts.frames == 50
        assert pid() != first

    async def test_clips_are_refused_until_processes_can_be_forked_again(
        self, start_hostile: Start, clip: bytes
    ) -> None:
        others = set(fork_servers())
        decoders = start_hostile(60, "tests.service.isolation.forkless")
        (server,) = set(fork_servers()) - others
        os.kill(server, signal.SIGUSR1)
        assert (await decoders.decode(clip)).facts.frames == 50  # in the process that was forked ahead
        for _ in range(3):
            with pytest.raises(DecodersError, match="no decoder process can be started"):
                await decoders.decode(clip)
        await eventually(lambda: "Resource temporarily unavailable" in (decoders.problem or ""))
        os.kill(server, signal.SIGUSR2)
        await eventually(lambda: not decoders.problem)

        assert (await decoders.decode(clip)).facts.frames == 50
        assert set(fork_servers()) - others == {server}

    async def test_a_process_that_ends_before_it_has_been_noticed_to_be_ready_has_answered(
        self, start_hostile: Start, clip: bytes
    ) -> None:
        decoders = start_hostile(60, "tests.service.isolation.late")
        answers = await asyncio.gather(*(decoders.decode(clip) for _ in range(4)))  # all but one are forked on demand

        assert [answer.facts.frames for answer in answers] == [50] * 4

    async def test_signals_to_the_process_group_do_not_end_the_fork_server(
        self, own: DecodersAndServer, clip: bytes
    ) -> None:
        decoders, pid = own
        server = pid()
        assert os.getpgid(server) == server  # not in the terminal's process group, from the start
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(server, number)

        assert (await decoders.decode(clip)).facts.frames == 50
        assert pid() == server

    def test_a_fork_server_ends_without_a_word_if_the_service_has_ended_before_it_was_ready(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.close()
        with theirs:
            ended = subprocess.run(
                [*python_command("service.isolation.forkserver"), str(theirs.fileno()), str(2**30), "{}"],
                pass_fds=[theirs.fileno()], capture_output=True, text=True, check=False,
            )  # fmt: skip

        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")

    async def test_an_error_names_the_fork_server_that_cannot_start(self) -> None:
        with pytest.raises(DecodersError, match="no_such_program"):
            DecoderProcesses(DecodeLimits(), memory_bytes=2**30, program="service.video.no_such_program")

    def test_killing_the_service_ends_the_fork_server_and_its_processes(self, tmp_path: Path) -> None:
        program = f"""
            import asyncio
            from service.video.decoder import DecodeLimits
            from service.isolation.processes import DecoderProcesses
            decoders = DecoderProcesses(DecodeLimits(), memory_bytes=2**30, program="tests.service.isolation.hostile")
            asyncio.run(decoders.decode({ENDLESS!r}))
        """
        with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], cwd=REPOSITORY) as service:
            until(lambda: decoders(service.pid))
            left = [pid for generation in descendants(service.pid) for pid in generation]
            service.kill()

        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))


@pytest.mark.slow
class TestClose:
    async def test_closing_fails_waiting_clips_and_leaves_no_process_and_no_descriptor(
        self, start_hostile: Start, clip: bytes
    ) -> None:
        gc.collect()  # otherwise descriptors of earlier tests could be closed meanwhile and hide a leak
        servers, descriptors = fork_servers(), open_descriptors()
        decoders = start_hostile(1)
        for data in (clip, b"no video", take_over("os.abort()"), ENDLESS):
            with contextlib.suppress(ClipError):
                await decoders.decode(data)
        waiting = asyncio.create_task(decoders.decode(ENDLESS))
        await eventually(decoding)
        await asyncio.to_thread(decoders.close)

        with pytest.raises(DecodersError, match="closed"):
            await waiting
        assert fork_servers() == servers
        assert open_descriptors() <= descriptors
        assert decoding() == []

    def test_decoders_that_cannot_be_watched_do_not_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", fail)
        servers = fork_servers()
        with pytest.raises(DecodersError, match="raise the process limit"):
            DecoderProcesses(DecodeLimits(), memory_bytes=2**30)

        assert fork_servers() == servers

    def test_the_service_does_not_start_without_a_required_layer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            DecoderProcesses,
            "grants",
            Grants(rlimits=True, no_new_privs=True, no_capabilities=True, landlock=0, seccomp=True),
        )
        servers = fork_servers()
        with pytest.raises(DecodersError, match="REQUIRE_SANDBOX is set, but this system lacks landlock"):
            start_decoders(DecodeLimits(), memory_bytes=2**30, require_sandbox=True)

        assert fork_servers() == servers
