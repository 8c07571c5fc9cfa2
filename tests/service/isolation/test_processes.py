"""Decoder processes: their answers, crashes, timeouts and forged answers, and the end of their fork server."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from model_export.rendering.figure import render_clip
from service.errors import ClipError, CorruptClip, DecoderCrashed, DecodersError, DecodeTimeout, ResolutionTooLarge
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
    @pytest.mark.parametrize("program", ["while True: pass", "time.sleep(1000)"])
    async def test_a_clip_that_takes_too_long_times_out_and_its_process_is_killed(
        self, start_hostile: Start, program: str
    ) -> None:
        decoders = start_hostile(1)
        with pytest.raises(DecodeTimeout, match="1 s"):
            await decoders.decode(take_over(program))

        assert decoding() == []

    async def test_cancelling_kills_the_process(self, hostile: DecoderProcesses) -> None:
        waiting = asyncio.create_task(hostile.decode(ENDLESS))
        await eventually(decoding)
        waiting.cancel()

        await eventually(lambda: decoding() == [])

    @pytest.mark.parametrize("program", ["ctypes.string_at(0)", "os._exit(0)", "os._exit(3)", "os.abort()", "1 / 0"])
    async def test_a_clip_that_crashes_its_decoder_is_refused_and_the_next_is_decoded(
        self, hostile: DecoderProcesses, program: str, clip: bytes
    ) -> None:
        with pytest.raises(DecoderCrashed):
            await hostile.decode(take_over(program))

        assert (await hostile.decode(clip)).facts.frames == 50

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


class TestForgedReports:
    FACTS = (
        '{"container": "mp4", "codec": "h264", "width": 64, "height": 48, "frames": 50, "duration_s": %s,'
        ' "rotation": 0, "damaged_frames": 0}'
    )
    SAMPLED = '[{"index": 0, "time_s": 0.5}' + ', {"index": 0, "time_s": 0.5}' * 39 + "]"

    VALID = f'{{"facts": {FACTS % 2.0}, "sampled": {SAMPLED}}}'

    async def test_a_valid_report_is_accepted(self, hostile: DecoderProcesses) -> None:
        assert (await hostile.decode(forged(self.VALID))).facts.duration_s == 2

    @pytest.mark.parametrize("report", [VALID, "nonsense", ""])
    async def test_a_process_that_closes_its_channel_is_killed_even_if_it_continues(
        self, hostile: DecoderProcesses, report: str
    ) -> None:
        clip = forged(report, "os.close(3); time.sleep(1000)")
        if report == self.VALID:
            assert (await hostile.decode(clip)).facts.duration_s == 2
        else:
            with pytest.raises(DecoderCrashed):
                await hostile.decode(clip)

        await eventually(lambda: decoding() == [])

    @pytest.mark.parametrize(
        "report",
        [
            "",
            "[" * 60000,
            "{}",
            '{"code": "internal_error", "detail": "not a code of a ClipError"}',
            '{"code": "corrupt_clip", "detail": "\\ud800"}',
            '{"failure": "not a traceback of the service"}',
            f'{{"facts": {FACTS % 2.0}, "sampled": []}}',
            f'{{"facts": {FACTS % "NaN"}, "sampled": {SAMPLED}}}',
            f'{{"facts": {FACTS % "1e999"}, "sampled": {SAMPLED}}}',
            f'{{"facts": {FACTS % -1.0}, "sampled": {SAMPLED}}}',
            f'{{"facts": {FACTS % 1e6}, "sampled": {SAMPLED}}}',
            f'{{"facts": {FACTS % 2.0}, "sampled": {SAMPLED}}}'.replace("50", '"50"'),
        ],
    )
    async def test_an_invalid_report_is_refused_as_a_crash(self, hostile: DecoderProcesses, report: str) -> None:
        with pytest.raises(DecoderCrashed):
            await hostile.decode(forged(report))


@pytest.fixture
def start_own(start_hostile: Start) -> Callable[[float], DecodersAndServer]:
    """Return a function that starts decoders for one test, and returns their fork server's process id too."""

    def start(timeout_s: float) -> DecodersAndServer:
        others = set(fork_servers())
        decoders = start_hostile(timeout_s)

        def pid() -> int:
            (server,) = set(fork_servers()) - others
            return server

        return decoders, pid

    return start


@pytest.fixture
def own(start_own: Callable[[float], DecodersAndServer]) -> DecodersAndServer:
    """Decoders for one test, with a time limit that no busy machine reaches, and their fork server's process id."""
    return start_own(60)


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

    async def test_a_clip_is_decoded_again_when_the_fork_server_dies(self, own: DecodersAndServer, clip: bytes) -> None:
        decoders, pid = own
        first = pid()
        interrupted = take_over(f"if SERVER == {first}: time.sleep(1000)")  # sleeps at the first attempt only
        waiting = asyncio.create_task(decoders.decode(interrupted))
        await eventually(decoding)
        os.kill(first, signal.SIGKILL)

        with pytest.raises(CorruptClip, match="done"):
            await waiting
        assert (await decoders.decode(clip)).facts.frames == 50
        assert pid() != first
        await eventually(lambda: decoding() == [])

    async def test_a_clip_whose_fork_server_dies_twice_is_refused(self, own: DecodersAndServer) -> None:
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

        with pytest.raises(DecoderCrashed, match="died twice"):
            await waiting

    async def test_a_fork_server_that_dies_while_idle_is_replaced(self, own: DecodersAndServer, clip: bytes) -> None:
        decoders, pid = own
        os.kill(pid(), signal.SIGKILL)

        assert (await decoders.decode(clip)).facts.frames == 50

    async def test_a_fork_server_that_hangs_is_replaced(
        self, start_own: Callable[[float], DecodersAndServer], clip: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.isolation.processes.KILL_TIMEOUT_S", 0.5)
        decoders, pid = start_own(5)
        os.kill(pid(), signal.SIGSTOP)
        with pytest.raises(DecodeTimeout):
            await decoders.decode(clip)

        assert (await decoders.decode(clip)).facts.frames == 50

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
        decoders = start_hostile(3)
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

    def test_the_service_does_not_start_without_a_required_layer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            DecoderProcesses, "grants", Grants(rlimits=True, no_new_privs=True, no_capabilities=True, seccomp=True)
        )
        servers = fork_servers()
        with pytest.raises(DecodersError, match="REQUIRE_SANDBOX is set, but this system lacks landlock"):
            start_decoders(DecodeLimits(), memory_bytes=2**30, require_sandbox=True)

        assert fork_servers() == servers
