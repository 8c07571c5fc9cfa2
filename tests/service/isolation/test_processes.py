"""One process a clip: what it answers, and what becomes of the service when it does not."""

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
Lone = tuple[DecoderProcesses, Callable[[], int]]
ENDLESS = take_over("while True: pass")


def fork_servers() -> list[int]:
    return [child for children in descendants(os.getpid())[:1] for child in children]


def decoding() -> list[int]:
    """The processes that are decoding now."""
    return decoders(os.getpid())


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def idle() -> None:
    """Clips that have been answered may leave processes behind that are about to end."""
    until(lambda: decoding() == [])


async def eventually(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(until, condition)


class TestAnswer:
    @pytest.mark.parametrize(
        ("codec", "container"),
        [("libx264", "mp4"), ("libx265", "matroska"), ("mpeg4", "avi"), ("libvpx-vp9", "webm"), ("libsvtav1", "mp4")],
    )
    async def test_is_what_decoding_here_gives(self, hostile: DecoderProcesses, codec: str, container: str) -> None:
        data = render_clip(frames=50, width=160, height=120, codec=codec, container=container).data
        there, here = await hostile.decode(data), decode_clip(data)

        assert (there.frames == here.frames).all()
        assert (there.facts, there.sampled) == (here.facts, here.sampled)

    @pytest.mark.parametrize("data", [b"no video " * 100, b"\0\0\0\x18ftypmp42", b""])
    async def test_is_the_refusal_that_decoding_here_gives(self, hostile: DecoderProcesses, data: bytes) -> None:
        with pytest.raises(ClipError) as there:
            await hostile.decode(data)
        with pytest.raises(ClipError) as here:
            decode_clip(data)

        assert (type(there.value), str(there.value)) == (type(here.value), str(here.value))

    async def test_is_each_clips_own_when_many_are_decoded_at_once(self, hostile: DecoderProcesses) -> None:
        clips = [render_clip(frames=frames, width=64, height=48).data for frames in range(41, 49)]
        answers = await asyncio.gather(*map(hostile.decode, clips))

        assert [answer.facts.frames for answer in answers] == list(range(41, 49))


class TestEnd:
    """Of a process, before its clip was decoded."""

    @pytest.mark.parametrize("program", ["while True: pass", "time.sleep(1000)"])
    async def test_comes_in_time(self, start_hostile: Start, program: str) -> None:
        decoders = start_hostile(1)
        with pytest.raises(DecodeTimeout, match="1 s"):
            await decoders.decode(take_over(program))

        assert decoding() == []

    async def test_comes_when_nobody_waits_any_more(self, hostile: DecoderProcesses) -> None:
        waiting = asyncio.create_task(hostile.decode(ENDLESS))
        await eventually(decoding)
        waiting.cancel()

        await eventually(lambda: decoding() == [])

    @pytest.mark.parametrize("program", ["ctypes.string_at(0)", "os._exit(0)", "os._exit(3)", "os.abort()", "1 / 0"])
    async def test_of_its_own_making_is_the_clips_fault(
        self, hostile: DecoderProcesses, program: str, clip: bytes
    ) -> None:
        with pytest.raises(DecoderCrashed):
            await hostile.decode(take_over(program))

        assert (await hostile.decode(clip)).facts.frames == 50

    async def test_by_another_hand_is_that_clips_alone(self, hostile: DecoderProcesses, clip: bytes) -> None:
        killed = asyncio.create_task(hostile.decode(ENDLESS))
        await eventually(decoding)
        (victim,) = decoding()
        other = asyncio.create_task(hostile.decode(clip))
        os.kill(victim, signal.SIGKILL)

        with pytest.raises(DecoderCrashed):
            await killed
        assert (await other).facts.frames == 50


def forged(answer: str, end: str = "os._exit(0)") -> bytes:
    """A clip whose decoder says this and then ends."""
    return take_over(
        f"""
        room, answer = sys._getframe(3).f_locals["room"], {answer!r}.encode()
        room[-65536 : len(answer) - 65536] = answer
        {end}
        """
    )


class TestForgedAnswer:
    FACTS = (
        '{"container": "mp4", "codec": "h264", "width": 64, "height": 48, "frames": 50, "duration_s": %s,'
        ' "rotation": 0, "damaged_frames": 0}'
    )
    SAMPLED = '[{"index": 0, "time_s": 0.5}' + ', {"index": 0, "time_s": 0.5}' * 39 + "]"

    TRUE = f'{{"facts": {FACTS % 2.0}, "sampled": {SAMPLED}}}'

    async def test_is_believed_where_it_could_be_true(self, hostile: DecoderProcesses) -> None:
        assert (await hostile.decode(forged(self.TRUE))).facts.duration_s == 2

    @pytest.mark.parametrize("answer", [TRUE, "nonsense", ""])
    async def test_is_the_end_of_who_says_that_it_is_done(self, hostile: DecoderProcesses, answer: str) -> None:
        clip = forged(answer, "os.close(3); time.sleep(1000)")
        if answer == self.TRUE:
            assert (await hostile.decode(clip)).facts.duration_s == 2
        else:
            with pytest.raises(DecoderCrashed):
                await hostile.decode(clip)

        await eventually(lambda: decoding() == [])

    @pytest.mark.parametrize(
        "answer",
        [
            "",
            "[" * 60000,
            "{}",
            '{"code": "internal_error", "detail": "a code that no clip has"}',
            '{"code": "corrupt_clip", "detail": "\\ud800"}',
            '{"failure": "as if it had been ours"}',
            f'{{"facts": {FACTS % 2.0}, "sampled": []}}',
            f'{{"facts": {FACTS % "NaN"}, "sampled": {SAMPLED}}}',
            f'{{"facts": {FACTS % "1e999"}, "sampled": {SAMPLED}}}',
            f'{{"facts": {FACTS % -1.0}, "sampled": {SAMPLED}}}',
            f'{{"facts": {FACTS % 1e6}, "sampled": {SAMPLED}}}',
            f'{{"facts": {FACTS % 2.0}, "sampled": {SAMPLED}}}'.replace("50", '"50"'),
        ],
    )
    async def test_is_refused_where_it_could_not(self, hostile: DecoderProcesses, answer: str) -> None:
        with pytest.raises(DecoderCrashed):
            await hostile.decode(forged(answer))


@pytest.fixture
def lone(start_hostile: Start) -> Lone:
    """Decoders of a test's own, and the process id of their fork server."""
    others = set(fork_servers())
    decoders = start_hostile(3)

    def pid() -> int:
        (server,) = set(fork_servers()) - others
        return server

    return decoders, pid


@pytest.mark.slow
class TestForkServer:
    async def test_has_a_process_wait_whose_end_costs_no_clip(self, lone: Lone, clip: bytes) -> None:
        decoders, pid = lone
        (waiting,) = descendants(pid())[0]
        os.kill(waiting, signal.SIGKILL)
        await eventually(lambda: not Path(f"/proc/{waiting}").exists())

        assert (await decoders.decode(clip)).facts.frames > 0

    async def test_starts_no_clip_while_a_killed_one_has_not_ended(self, start_hostile: Start, clip: bytes) -> None:
        decoders = start_hostile(60, "tests.service.isolation.reluctant")
        waiting = asyncio.create_task(decoders.decode(ENDLESS))
        await eventually(decoding)
        (killed,) = decoding()
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting

        assert (await decoders.decode(clip)).facts.frames == 50
        assert not Path(f"/proc/{killed}").exists()

    async def test_starts_whatever_is_asked_of_clips(self, clip: bytes) -> None:
        limits = DecodeLimits(max_pixels=1, max_frames=1, max_duration_s=0.01)
        processes = DecoderProcesses(limits, memory_bytes=2**31)
        with contextlib.closing(processes), pytest.raises(ResolutionTooLarge):
            await processes.decode(clip)

    async def test_that_dies_costs_no_clip(self, lone: Lone, clip: bytes) -> None:
        decoders, pid = lone
        slow = asyncio.create_task(decoders.decode(take_over("time.sleep(2)")))
        await eventually(decoding)
        first = pid()
        os.kill(first, signal.SIGKILL)

        with pytest.raises(CorruptClip, match="done"):
            await slow
        assert (await decoders.decode(clip)).facts.frames == 50
        assert pid() != first
        await eventually(lambda: decoding() == [])

    async def test_that_dies_when_idle_is_replaced(self, lone: Lone, clip: bytes) -> None:
        decoders, pid = lone
        os.kill(pid(), signal.SIGKILL)

        assert (await decoders.decode(clip)).facts.frames == 50

    async def test_that_hangs_is_replaced(self, lone: Lone, clip: bytes) -> None:
        decoders, pid = lone
        os.kill(pid(), signal.SIGSTOP)
        with pytest.raises(DecodeTimeout):
            await decoders.decode(clip)

        assert (await decoders.decode(clip)).facts.frames == 50

    async def test_is_left_alone_by_signals_to_the_whole_group(self, lone: Lone, clip: bytes) -> None:
        decoders, pid = lone
        server = pid()
        assert os.getpgid(server) == server  # out of the terminal's reach from the start
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(server, number)

        assert (await decoders.decode(clip)).facts.frames == 50
        assert pid() == server

    async def test_that_cannot_start_says_so(self) -> None:
        with pytest.raises(DecodersError, match="no_such_program"):
            DecoderProcesses(DecodeLimits(), memory_bytes=2**30, program="service.video.no_such_program")

    def test_ends_with_the_service_and_so_do_its_processes(self, tmp_path: Path) -> None:
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
    async def test_leaves_nothing_behind(self, start_hostile: Start, clip: bytes) -> None:
        gc.collect()  # what earlier tests left for it must not go meanwhile and be taken for ours
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

    def test_comes_at_once_where_a_required_layer_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(DecoderProcesses, "grants", Grants(rlimits=True, no_new_privs=True, seccomp=True))
        with pytest.raises(DecodersError, match="REQUIRE_SANDBOX is set, but this system lacks landlock"):
            start_decoders(DecodeLimits(), memory_bytes=2**30, require_sandbox=True)
