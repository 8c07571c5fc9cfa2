"""Decodes each clip in a process of its own, forked from a fork server, so that a crash or attack ends with its clip.

The clip and its answer are anonymous files in memory, whose descriptors are passed over sockets; ``forkserver``
describes the protocol. Every answer is validated before it is used, because a hostile clip may have taken over the
process that wrote it.
"""

import asyncio
import contextlib
import fcntl
import io
import json
import logging
import math
import mmap
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Annotated, Self

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from service.environment import python_command, without_relative_paths
from service.errors import (
    ClipError,
    ClipTooLong,
    CorruptClip,
    DecoderCrashed,
    DecoderFault,
    DecodersError,
    DecodeTimeout,
    NoFrames,
    ResolutionTooLarge,
    UnsupportedMedia,
)
from service.isolation.clip_file import ClipFile, add_seals, create_memory_file
from service.isolation.forkserver import (
    ANSWER_BYTES,
    BEAT_S,
    DONE,
    FRAMES_BYTES,
    FRAMES_SHAPE,
    MAX_DETAIL_CHARACTERS,
    MAX_FAILURE_CHARACTERS,
    OK,
    OUT_OF_MEMORY,
    UNAVAILABLE,
)
from service.isolation.sandbox import Grants
from service.video.decoder import CONTAINERS, ClipFacts, DecodedClip, DecodeLimits, Image, SampledFrame
from service.video.display import MAX_PIXEL_ASPECT
from service.video.media import CODECS
from service.video.sampling import FRAME_COUNT

START_TIMEOUT_S = 120
# A killed process ends within milliseconds; a fork server that has not reported it after this time is replaced.
KILL_TIMEOUT_S = 5
# A fork server that says nothing for this time is replaced.
SILENCE_S = 5
# A clip's process may take this many times the processor time that the clip is allowed, and some seconds more, before
# it is replaced. With the default settings a second attempt still fits into the time of a request.
WALL_FACTOR, WALL_MARGIN_S = 2, 5
ATTEMPTS = 2
# A fork server is replaced at once, but if it lived for less than this time, a growing pause is made first.
SHORT_LIFE_S, MAX_PAUSE_S = 10, 10
# While the fork server is being replaced, which takes half a second, clips wait for it for at most this time.
REPLACEMENT_PATIENCE_S, POLL_S = 10, 0.02
# Environment variables that the fork server inherits to find its code. Others may hold secrets.
INHERITED_VARIABLES = frozenset({"HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH"})
# A decoder process lives so briefly that much of its time goes into new pages; huge pages save a sixth of it.
ADDED_VARIABLES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "OPENBLAS_NUM_THREADS": "1"}
# The errors that ``decode_clip`` raises.
REJECTIONS: Mapping[str, type[ClipError]] = MappingProxyType(
    {
        kind.code: kind
        for kind in (UnsupportedMedia, CorruptClip, NoFrames, ClipTooLong, ResolutionTooLarge, DecodeTimeout)
    }
)

logger = logging.getLogger(__name__)


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("the text holds characters that cannot be printed")
    return text


@dataclass(frozen=True, slots=True)
class _Decoded:
    """The report on a clip that was decoded."""

    facts: ClipFacts
    sampled: Annotated[tuple[SampledFrame, ...], Field(min_length=FRAME_COUNT, max_length=FRAME_COUNT)]

    def why_invalid(self, limits: DecodeLimits) -> str:
        """Return what ``decode_clip`` would not have answered under these limits; empty if nothing."""
        facts, indices = self.facts, [frame.index for frame in self.sampled]
        times = [frame.time_s for frame in self.sampled]
        ranges = {
            "container": facts.container in CONTAINERS,
            "codec": facts.codec in CODECS,
            "width and height": _is_size(facts.width, facts.height, MAX_PIXEL_ASPECT * limits.max_pixels),
            "coded_width and coded_height": _is_size(facts.coded_width, facts.coded_height, limits.max_pixels),
            "frames": 1 <= facts.frames <= limits.max_frames,
            "duration_s": 0 < facts.duration_s <= limits.max_duration_s,
            "rotation": facts.rotation in {0, 90, 180, 270},
            "damaged_frames": 0 <= facts.damaged_frames <= FRAME_COUNT,
            "index": indices == sorted(indices) and indices[0] >= 0 and indices[-1] < facts.frames,
            "time_s": times == sorted(times) and times[0] > 0 and times[-1] <= facts.duration_s,
        }
        return ", ".join(field for field, valid in ranges.items() if not valid)


def _is_size(width: int, height: int, max_pixels: int) -> bool:
    return min(width, height) >= 1 and width * height <= max_pixels


@dataclass(frozen=True, slots=True)
class _Rejected:
    """The report on a clip that raised a ``ClipError``."""

    code: str
    detail: Annotated[str, Field(min_length=1, max_length=MAX_DETAIL_CHARACTERS), AfterValidator(_check_printable)]


@dataclass(frozen=True, slots=True)
class _Failed:
    """The report on a clip that raised any other exception; ``failure`` is its traceback."""

    failure: Annotated[str, Field(max_length=MAX_FAILURE_CHARACTERS)]


_REPORT: TypeAdapter[_Decoded | _Rejected | _Failed] = TypeAdapter(
    _Decoded | _Rejected | _Failed, config=ConfigDict(strict=True, allow_inf_nan=False)
)


def start_decoders(
    limits: DecodeLimits,
    *,
    memory_bytes: int,
    require_sandbox: bool = False,
    on_restart: Callable[[], object] = lambda: None,
) -> "DecoderProcesses":
    """Start decoder processes and log which layers of the sandbox this kernel grants. Takes half a second.

    Args:
        limits: Limits on each clip.
        memory_bytes: Address space that decoding one clip may use.
        require_sandbox: Whether to refuse to start if a layer of the sandbox is missing.
        on_restart: Called, in a thread, whenever another fork server has been started in place of the last one.

    Raises:
        DecodersError: The processes cannot be started, or a required layer is missing.
    """
    decoders = DecoderProcesses(limits, memory_bytes=memory_bytes, on_restart=on_restart)
    missing = ", ".join(decoders.grants.missing)
    if missing and require_sandbox:
        decoders.close()
        raise DecodersError(
            f"LIMELIGHT_REQUIRE_SANDBOX is set, but this system lacks {missing}; `limelight doctor` shows the remedies"
        )
    if missing:
        logger.warning("the decoder sandbox lacks %s; `limelight doctor` shows the remedies", missing)
    else:
        logger.info("the decoder sandbox is complete")
    return decoders


class DecoderProcesses:
    """Decodes each clip in a sandboxed process of its own. Creating it starts the fork server, in half a second.

    A thread watches the fork server and replaces it when it has died or is silent.

    Args:
        limits: Limits on each clip.
        memory_bytes: Address space that decoding one clip may use.
        program: The module that is run as the fork server.
        on_restart: Called, in a thread, whenever another fork server has been started in place of the last one.

    Raises:
        DecodersError: The fork server cannot be started.
    """

    def __init__(
        self,
        limits: DecodeLimits,
        *,
        memory_bytes: int,
        program: str = "service.isolation.forkserver",
        on_restart: Callable[[], object] = lambda: None,
    ) -> None:
        self._limits = limits
        self._wall_s = WALL_FACTOR * limits.timeout_s + WALL_MARGIN_S
        self._program = [program, str(memory_bytes), json.dumps(asdict(limits))]
        self._on_restart = on_restart
        self._closed = threading.Event()
        self._replacing = threading.Lock()  # held to start a fork server, which may not happen after ``close``
        self._failed = False  # whether the last fork server could not be started
        self._server = _ForkServer(*self._program)
        self._grants = self._server.wait_until_ready()
        self._watcher = threading.Thread(target=self._watch, name="decoders", daemon=True)
        try:
            self._watcher.start()
        except RuntimeError as error:
            self._server.close()
            raise DecodersError("clips cannot be decoded: no thread can be started; raise the process limit") from error

    @property
    def grants(self) -> Grants:
        """The layers of the sandbox that this kernel grants."""
        return self._grants

    @property
    def problem(self) -> str | None:
        """Why no clip can be decoded at the moment; ``None`` if clips can be decoded."""
        if self._failed:
            return "the decoders cannot be started, and the service's log has the reason; try again later"
        if not self._server.alive:
            return "the decoders are being restarted; try again later"
        if self._server.state != OK:
            return f"no decoder process can be started ({self._server.state.decode()}); try again later"
        return None

    async def decode(self, clip: bytes | ClipFile) -> DecodedClip:
        """Decode a clip as ``decode_clip`` does, within a time limit whatever the clip does.

        Cancelling kills the process.

        Args:
            clip: The clip's bytes, or the file that holds them, which is sealed.

        Raises:
            ClipError: The clip cannot be sampled. ``DecoderCrashed``: its process died. ``DecoderFault``: its process
                failed in another way, or gave an invalid answer.
            DecodersError: The decoder processes are closed, cannot be started, or did not answer twice.
        """
        if isinstance(clip, bytes):
            with ClipFile() as file:
                file.write(clip)
                return await self.decode(file)
        clip.seal()
        for _ in range(ATTEMPTS):
            server = await self._available_server()
            with await server.fork(clip) as job:
                answer = await self._answer(server, job)
                if answer:
                    return self._result(*answer, job)
        raise DecodersError("the decoders died or did not answer, twice; try again later")

    def close(self) -> None:
        """Kill all decoder processes and end the fork server. Blocks until they have ended."""
        with self._replacing:
            self._closed.set()
            self._server.end()
        self._watcher.join()

    async def _available_server(self) -> "_ForkServer":
        """Return the fork server. While it is being replaced, wait for that."""
        for _ in range(math.ceil(REPLACEMENT_PATIENCE_S / POLL_S)):
            if self._closed.is_set():
                raise DecodersError("the decoder processes have been closed")
            if self._server.alive:
                return self._server
            if self._failed:
                break
            await asyncio.sleep(POLL_S)
        raise self._unavailable()

    def _watch(self) -> None:
        """Replace the fork server whenever it has died or is silent, until ``close``. Runs in a thread."""
        pause_s, began = 0.0, time.monotonic()
        while not self._closed.is_set():
            if not self._failed:
                reason = self._server.watch()
                self._server.close()
                if time.monotonic() > began + SHORT_LIFE_S:
                    pause_s = 0.0
                if not self._closed.is_set():
                    logger.error("the decoders' fork server %s; starting another", reason)
            self._closed.wait(pause_s)
            pause_s = min(2 * pause_s + 1, MAX_PAUSE_S)
            self._replace()
            began = time.monotonic()

    def _replace(self) -> None:
        """Start another fork server, unless the decoders are closed."""
        try:
            with self._replacing:
                if self._closed.is_set():
                    return
                self._server = _ForkServer(*self._program)
            self._server.wait_until_ready()
        except DecodersError as error:
            self._failed = True
            if not self._closed.is_set():
                logger.error("%s", error)
        else:
            self._failed = False
            self._on_restart()

    def _unavailable(self) -> DecodersError:
        return DecodersError(self.problem or "no decoder process can be started; try again later")

    async def _answer(self, server: "_ForkServer", job: "_Job") -> tuple[bytes, bytes] | None:
        """Wait for the answer for a clip.

        Returns:
            ``DONE`` or how the process ended, and its report; ``None`` if it did not answer in time or its fork server
            died, neither of which the clip can be blamed for.

        Raises:
            DecodersError: No process could be started for the clip.
        """
        message = await job.receive(self._wall_s)
        # Read once: the process that writes it may not have ended yet. Of a dead fork server, the file may be closed.
        report = job.report() if message else b""
        if message == DONE and not report:
            message = await job.receive(KILL_TIMEOUT_S)
        if message == UNAVAILABLE:
            raise self._unavailable()
        if message:
            return message, report
        if message is None:
            logger.error("a decoder process was silent for too long")
            job.cancel()
            while (message := await job.receive(KILL_TIMEOUT_S)) == DONE:
                pass
            if message and message != UNAVAILABLE and self._used_its_time(message):
                return message, b""
        if not message:
            server.kill()  # it has died, or does not end its process
        return None

    def _result(self, message: bytes, report: bytes, job: "_Job") -> DecodedClip:
        """Return the decoded clip, or raise the error that its report names. An empty report means a crash."""
        if not report:
            raise self._ending(message)
        try:
            answer = _REPORT.validate_json(report)
        except ValidationError as error:
            raise _invalid(f"{error.error_count()} errors, {error.errors(include_input=False)[0]}"[:1000]) from error
        match answer:
            case _Decoded(facts, sampled):
                if invalid := answer.why_invalid(self._limits):
                    raise _invalid(f"out of range: {invalid}")
                return DecodedClip(job.frames(), facts, sampled)
            case _Rejected(code, detail):
                if code not in REJECTIONS:
                    raise _invalid("a code that no decoder gives")
                raise REJECTIONS[code](detail)
            case _Failed(failure):
                logger.error("a decoder process failed", extra={"traceback": failure})
                raise DecoderFault("the clip's decoder failed unexpectedly; the clip may be malformed")

    def _ending(self, message: bytes) -> ClipError:
        """Return the error of a clip whose process ended without a report."""
        if self._used_its_time(message):
            return self._limits.timed_out()
        exit_code = _exit_code(message)
        if exit_code == OUT_OF_MEMORY:
            return DecoderCrashed("decoding the clip takes more memory than allowed")
        reason = signal.strsignal(-exit_code) if exit_code < 0 else f"exit code {exit_code}"
        logger.warning("a decoder process died", extra={"reason": reason})
        return DecoderCrashed("the clip's decoder died; the clip may be malformed or need too much memory")

    def _used_its_time(self, message: bytes) -> bool:
        """Return whether a process was killed after it had used the processor time that a clip may take."""
        _, cpu_s = message.split()
        return _exit_code(message) in {-signal.SIGKILL, -signal.SIGXCPU} and float(cpu_s) >= self._limits.timeout_s


def _exit_code(message: bytes) -> int:
    """Return the exit code of a process that has ended, or minus the number of the signal that ended it."""
    status, _ = message.split()
    return os.waitstatus_to_exitcode(int(status))


def _invalid(reason: str) -> DecoderFault:
    """Log why a decoder's report is invalid, and return the error."""
    logger.error("a decoder process returned an invalid answer", extra={"reason": reason})
    return DecoderFault("the clip's decoder returned an invalid answer; the clip may be malformed")


class _Job:
    """One clip that is being decoded, as the service sees it: the answer's file, and the socket to the fork server."""

    def __init__(self, answer: io.FileIO, socket_: socket.socket) -> None:
        self._answer, self._socket = answer, socket_
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Release the answer and the socket. If the process has not ended, the fork server kills it."""
        self._answer.close()
        self._socket.close()

    async def receive(self, patience_s: float) -> bytes | None:
        """Return the fork server's next message; empty if it has died, ``None`` if none arrives in time.

        The time is waited for in parts, because this process may be stopped for a while: that ends one part only, and
        then what has arrived meanwhile is received.
        """
        receiving = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(self._socket, 64))
        try:
            for _ in range(math.ceil(patience_s)):
                done, _ = await asyncio.wait({receiving}, timeout=1)
                if done:
                    return receiving.result()
            return None
        finally:
            receiving.cancel()

    def cancel(self) -> None:
        """Ask the fork server to kill the process; its wait status follows."""
        self._socket.shutdown(socket.SHUT_WR)

    def report(self) -> bytes:
        """Return the JSON behind the frames; empty if the process has not written it."""
        return os.pread(self._answer.fileno(), ANSWER_BYTES - FRAMES_BYTES, FRAMES_BYTES).rstrip(b"\0")

    def frames(self) -> Image:
        """Return the frames, uint8 ``(40, 224, 224, 3)``: a read-only view that keeps the answer's memory alive."""
        memory = mmap.mmap(self._answer.fileno(), ANSWER_BYTES, prot=mmap.PROT_READ)
        return np.frombuffer(memory, np.uint8, FRAMES_BYTES).reshape(FRAMES_SHAPE)


def _create_answer_file() -> io.FileIO:
    """Create an empty file for an answer, whose size is sealed."""
    file = create_memory_file("answer")
    file.truncate(ANSWER_BYTES)
    add_seals(file, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return file


class _ForkServer:
    """A running fork server, as the service sees it. Creating it starts the program.

    Attributes:
        state: ``OK``, or the reason why it cannot fork processes.

    Raises:
        DecodersError: The program cannot be started.
    """

    def __init__(self, program: str, *arguments: str) -> None:
        self.state = OK
        self._name = program
        self._ready = self._killed = False
        variables = without_relative_paths(os.environ)
        inherited = {name: variables[name] for name in INHERITED_VARIABLES & variables.keys()}
        try:
            with contextlib.ExitStack() as opened:
                self._answer = opened.enter_context(_create_answer_file())  # of the next clip
                self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                opened.enter_context(self._control)
                with theirs:
                    self._process = subprocess.Popen(  # noqa: S603 (a module of this package)
                        [*python_command(program), str(theirs.fileno()), *arguments],
                        stdin=subprocess.DEVNULL,
                        cwd="/",  # not the current folder, in which anything may lie
                        pass_fds=[theirs.fileno()],
                        start_new_session=True,  # otherwise a signal to the group could end it before it ignores them
                        env=inherited | ADDED_VARIABLES,
                    )
                opened.pop_all()
        except OSError as error:
            raise DecodersError(
                f"clips cannot be decoded: `python -m {program}` cannot be started ({error.strerror}); free memory, or "
                "raise the limits on processes and open files"
            ) from error

    def wait_until_ready(self) -> Grants:
        """Block until the program is ready. Returns the layers of the sandbox that this kernel grants.

        Raises:
            DecodersError: The program ended while it started. It has been closed.
        """
        try:
            self._control.settimeout(START_TIMEOUT_S)
            socket.send_fds(self._control, [b"."], [self._answer.fileno()])
            grants = Grants(**json.loads(self._control.recv(4096)))
            self._control.setblocking(False)
        except (OSError, ValueError) as error:
            self.close()
            raise DecodersError(
                f"clips cannot be decoded: `python -m {self._name}` ended with exit code {self._process.returncode} "
                "while it started; its output on standard error has the reason"
            ) from error
        self._ready = True
        return grants

    @property
    def alive(self) -> bool:
        """Whether the program is ready, runs, and has not been killed."""
        return self._ready and not self._killed and self._process.poll() is None

    def watch(self) -> str:
        """Keep ``state`` up to date until the fork server has died or is silent; return which, as a verb.

        Silence is counted in parts, as in ``_Job.receive``.
        """
        readable = select.poll()
        readable.register(self._control, select.POLLIN)
        silent_s = 0.0
        while silent_s < SILENCE_S:
            if not readable.poll(1000 * BEAT_S):
                silent_s += BEAT_S
                continue
            silent_s = 0.0
            try:
                state = self._control.recv(4096)
            except OSError:  # it has died and left messages unread
                return "died"
            if not state:
                return "died"
            self._set_state(state)
        self.kill()
        return "does not answer"

    def _set_state(self, state: bytes) -> None:
        if state == self.state:
            return
        self.state = state
        if state == OK:
            logger.info("decoder processes can be started again")
        else:
            logger.error("no decoder process can be started: %s", state.decode())

    async def fork(self, clip: ClipFile) -> _Job:
        """Start decoding a clip. If the fork server has died, the job receives an empty message.

        The control socket holds some hundred messages. While it is full, wait until the fork server has read some.
        """
        with contextlib.ExitStack() as opened:
            next_answer = opened.enter_context(_create_answer_file())
            ours, theirs = map(opened.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            with theirs:
                try:
                    while not self._send([clip.fileno(), theirs.fileno(), next_answer.fileno()]):
                        await asyncio.sleep(POLL_S)
                except OSError:  # it has died
                    answer = next_answer
                else:
                    answer, self._answer = self._answer, next_answer
            opened.pop_all()
        return _Job(answer, ours)

    def _send(self, descriptors: list[int]) -> bool:
        """Send descriptors to the fork server. Returns False if the control socket is full."""
        try:
            socket.send_fds(self._control, [b"."], descriptors)
        except BlockingIOError:
            return False
        return True

    def end(self) -> None:
        """Tell the fork server to end its processes and itself."""
        with contextlib.suppress(OSError):  # it has died
            self._control.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """Kill the fork server, which ends the processes forked from it too. ``close`` must still be called."""
        self._killed = True
        self._process.kill()

    def close(self) -> None:
        """End the fork server. Blocks until it has ended its processes and itself."""
        self.end()
        self._control.close()
        self._answer.close()
        try:
            self._process.wait(KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
