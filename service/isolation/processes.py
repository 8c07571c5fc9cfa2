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
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Annotated, Self

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from service.errors import ClipError, DecoderCrashed, DecodersError, DecodeTimeout
from service.isolation.clip_file import ClipFile, add_seals, create_memory_file
from service.isolation.forkserver import ANSWER_BYTES, DONE, FRAMES_BYTES, FRAMES_SHAPE
from service.isolation.sandbox import Grants
from service.video.decoder import ClipFacts, DecodedClip, DecodeLimits, Image, SampledFrame
from service.video.sampling import FRAME_COUNT

START_TIMEOUT_S = 120
# A killed process ends within milliseconds; a fork server that has not reported it after this time is replaced.
KILL_TIMEOUT_S = 5
# Environment variables that the fork server inherits to find its code. Others may hold secrets.
INHERITED_VARIABLES = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH")
# A decoder process lives so briefly that much of its time goes into new pages; huge pages save a sixth of it.
ADDED_VARIABLES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "OPENBLAS_NUM_THREADS": "1"}
CLIP_ERRORS: Mapping[str, type[ClipError]] = MappingProxyType({kind.code: kind for kind in ClipError.__subclasses__()})
INVALID_ANSWER = "the clip's decoder returned an invalid answer; the clip may be malformed"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Decoded:
    """The report on a clip that was decoded."""

    facts: ClipFacts
    sampled: Annotated[tuple[SampledFrame, ...], Field(min_length=FRAME_COUNT, max_length=FRAME_COUNT)]


@dataclass(frozen=True, slots=True)
class _Rejected:
    """The report on a clip that raised a ``ClipError``."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class _Failed:
    """The report on a clip that raised any other exception; ``failure`` is its traceback."""

    failure: str


_REPORT: TypeAdapter[_Decoded | _Rejected | _Failed] = TypeAdapter(
    _Decoded | _Rejected | _Failed, config=ConfigDict(strict=True, allow_inf_nan=False)
)


def start_decoders(limits: DecodeLimits, *, memory_bytes: int, require_sandbox: bool = False) -> "DecoderProcesses":
    """Start decoder processes and log which layers of the sandbox this kernel grants. Takes half a second.

    Args:
        limits: Limits on each clip.
        memory_bytes: Address space that decoding one clip may use.
        require_sandbox: Whether to refuse to start if a layer of the sandbox is missing.

    Raises:
        DecodersError: The processes cannot be started, or a required layer is missing.
    """
    decoders = DecoderProcesses(limits, memory_bytes=memory_bytes)
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

    Args:
        limits: Limits on each clip.
        memory_bytes: Address space that decoding one clip may use.
        program: The module that is run as the fork server.

    Raises:
        DecodersError: The fork server cannot be started.
    """

    def __init__(
        self, limits: DecodeLimits, *, memory_bytes: int, program: str = "service.isolation.forkserver"
    ) -> None:
        self._limits = limits
        self._program = [program, str(memory_bytes), json.dumps(asdict(limits))]
        self._lock = threading.Lock()  # guards _server and _closed
        self._closed = False
        self._server = _ForkServer(*self._program)

    @property
    def grants(self) -> Grants:
        """The layers of the sandbox that this kernel grants."""
        return self._server.grants

    async def decode(self, clip: bytes | ClipFile) -> DecodedClip:
        """Decode a clip as ``decode_clip`` does, within the time limit whatever the clip does.

        Cancelling kills the process.

        Args:
            clip: The clip's bytes, or the file that holds them, which is sealed.

        Raises:
            ClipError: The clip cannot be sampled; ``DecoderCrashed`` if its process died or gave an invalid answer.
            DecodersError: The decoder processes are closed, or the fork server died and cannot be started again.
        """
        if isinstance(clip, bytes):
            with ClipFile() as file:
                file.write(clip)
                return await self.decode(file)
        clip.seal()
        for _ in range(2):
            server = self._server if self._server.alive else await asyncio.to_thread(self._restart)
            with server.fork(clip) as job:
                message = await self._wait(server, job)
                report = job.report()  # read once: the process that writes it may not have ended yet
                if message == DONE and not report:
                    message = await self._wait(server, job)
                if message:
                    return self._result(message, report, job)
            # The fork server died and took the clip's process with it. The clip may not be the cause: try once more.
            server.kill()
        raise DecoderCrashed("the decoders died twice while decoding this clip; the clip may be malformed")

    def close(self) -> None:
        """Kill all decoder processes and end the fork server. Blocks until they have ended."""
        with self._lock:
            self._closed = True
            self._server.close()

    def _restart(self) -> "_ForkServer":
        """Return a fork server that is alive, starting one if needed. Blocks for half a second if it does."""
        with self._lock:
            if self._closed:
                raise DecodersError("the decoder processes have been closed")
            if not self._server.alive:
                logger.error("the decoders' fork server died; starting another")
                self._server.close()
                self._server = _ForkServer(*self._program)
            return self._server

    async def _wait(self, server: "_ForkServer", job: "_Job") -> bytes:
        """Wait for the next message about a clip: ``DONE`` or its process's wait status in decimal digits.

        Returns:
            The message; empty if the fork server died.

        Raises:
            DecodeTimeout: The time limit has passed. The process has been killed.
        """
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return await job.receive()
        except TimeoutError as error:
            job.cancel()
            try:
                async with asyncio.timeout(KILL_TIMEOUT_S):
                    while await job.receive() == DONE:
                        pass
            except TimeoutError:
                server.kill()
            raise DecodeTimeout(f"the clip takes more than {self._limits.timeout_s:g} s to decode") from error

    def _result(self, message: bytes, report: bytes, job: "_Job") -> DecodedClip:
        """Return the decoded clip, or raise the error that its report names. An empty report means a crash."""
        if not report:
            exit_code = os.waitstatus_to_exitcode(int(message))
            reason = signal.strsignal(-exit_code) if exit_code < 0 else f"exit code {exit_code}"
            logger.warning("a decoder process died", extra={"reason": reason})
            raise DecoderCrashed("the clip's decoder died; the clip may be malformed or need too much memory")
        try:
            answer = _REPORT.validate_json(report)
        except ValidationError as error:
            logger.warning("a decoder process returned an invalid answer", extra={"reason": str(error)})
            raise DecoderCrashed(INVALID_ANSWER) from error
        match answer:
            case _Decoded(facts, sampled) if 0 <= facts.duration_s <= self._limits.max_duration_s:
                return DecodedClip(job.frames(), facts, sampled)
            case _Rejected(code, detail) if code in CLIP_ERRORS:
                raise CLIP_ERRORS[code](detail)
            case _Failed(failure):
                logger.error("a decoder process failed", extra={"traceback": failure})
        raise DecoderCrashed(INVALID_ANSWER)


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

    async def receive(self) -> bytes:
        """Return the fork server's next message; empty if it has closed the socket."""
        return await asyncio.get_running_loop().sock_recv(self._socket, 16)

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
    """A running fork server, as the service sees it. Creating it blocks until the program is ready.

    Attributes:
        grants: The layers of the sandbox that this kernel grants.
    """

    def __init__(self, program: str, *arguments: str) -> None:
        self._killed = False
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        inherited = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 (a module of this package)
                [sys.executable, "-m", program, str(theirs.fileno()), *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # otherwise a signal to the group could end it before it ignores signals
                env=inherited | ADDED_VARIABLES,
            )
        self._answer = _create_answer_file()  # of the next clip
        try:
            self._control.settimeout(START_TIMEOUT_S)
            socket.send_fds(self._control, [b"."], [self._answer.fileno()])
            self.grants = Grants(**json.loads(self._control.recv(4096)))
            self._control.setblocking(False)
        except (OSError, ValueError) as error:
            self.close()
            raise DecodersError(
                f"clips cannot be decoded: `python -m {program}` ended with exit code {self._process.returncode} while "
                "it started; its output on standard error has the reason"
            ) from error

    @property
    def alive(self) -> bool:
        """Whether the process runs and has not been killed."""
        return not self._killed and self._process.poll() is None

    def fork(self, clip: ClipFile) -> _Job:
        """Start decoding a clip. If the fork server has died, the job receives an empty message."""
        with contextlib.ExitStack() as opened:
            next_answer = opened.enter_context(_create_answer_file())
            ours, theirs = map(opened.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            opened.pop_all()
        answer, self._answer = self._answer, next_answer
        with contextlib.suppress(OSError), theirs:
            socket.send_fds(self._control, [b"."], [clip.fileno(), theirs.fileno(), next_answer.fileno()])
        return _Job(answer, ours)

    def kill(self) -> None:
        """Kill the fork server, which ends the processes forked from it too. ``close`` must still be called."""
        self._killed = True
        self._process.kill()

    def close(self) -> None:
        """End the fork server. Blocks until it has ended its processes and itself."""
        self._control.close()
        self._answer.close()
        try:
            self._process.wait(KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
