"""One decoder process per clip, forked from a fork server, so that whatever a clip does to its decoder ends with it.

A clip and its answer travel as anonymous files in memory. Every answer is checked before use, because a hostile clip
may have taken its decoder over.
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
from service.isolation.clip_file import ClipFile, file_in_memory, seal
from service.isolation.forkserver import ANSWER_BYTES, DONE, FRAMES_BYTES, FRAMES_SHAPE
from service.isolation.sandbox import Grants
from service.video.decoder import ClipFacts, DecodedClip, DecodeLimits, Image, SampledFrame
from service.video.sampling import FRAME_COUNT

START_S = 120
# A killed process is gone within milliseconds; a fork server that cannot tell in this time is no good any more.
KILL_S = 5
# All that the fork server is told of this environment, which may hold secrets: where its code is.
INHERITED = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH")
# A process so short spends much of its life on fresh pages: huge ones save it a sixth of its time.
ALLOCATION = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "OPENBLAS_NUM_THREADS": "1"}
ERRORS: Mapping[str, type[ClipError]] = MappingProxyType({kind.code: kind for kind in ClipError.__subclasses__()})

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Found:
    facts: ClipFacts
    sampled: Annotated[tuple[SampledFrame, ...], Field(min_length=FRAME_COUNT, max_length=FRAME_COUNT)]


@dataclass(frozen=True, slots=True)
class _Refused:
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class _Failed:
    failure: str


_ANSWER: TypeAdapter[_Found | _Refused | _Failed] = TypeAdapter(
    _Found | _Refused | _Failed, config=ConfigDict(strict=True, allow_inf_nan=False)
)


def start_decoders(limits: DecodeLimits, *, memory_bytes: int, require_sandbox: bool = False) -> "DecoderProcesses":
    """Start decoder processes and log which layers of the sandbox this kernel grants. Takes half a second.

    Args:
        limits: What one clip may cost.
        memory_bytes: Address space that decoding one clip may take.
        require_sandbox: Whether to refuse to start where a layer of the sandbox is missing.

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
        logger.warning("the sandbox of the decoders lacks %s; `limelight doctor` shows the remedies", missing)
    else:
        logger.info("the sandbox of the decoders is complete")
    return decoders


class DecoderProcesses:
    """Decodes each clip in a process of its own that may do nothing but compute (see ``sandbox``).

    ``memory_bytes`` bounds the address space that a clip may take. ``program`` is the module that is the fork server.
    Starting takes half a second. Raises DecodersError.
    """

    def __init__(
        self, limits: DecodeLimits, *, memory_bytes: int, program: str = "service.isolation.forkserver"
    ) -> None:
        self._limits = limits
        self._program = [program, str(memory_bytes), json.dumps(asdict(limits))]
        self._changing = threading.Lock()  # guards _server and _closed
        self._closed = False
        self._server = _ForkServer(*self._program)

    @property
    def grants(self) -> Grants:
        """What the sandbox is made of on this machine."""
        return self._server.grants

    async def decode(self, clip: bytes | ClipFile) -> DecodedClip:
        """As ``decode_clip`` does, and within the time limit whatever the clip does. Cancelling kills the process.

        Raises ClipError, of which DecoderCrashed where the process died; DecodersError.
        """
        if isinstance(clip, bytes):
            with ClipFile() as file:
                file.write(clip)
                return await self.decode(file)
        clip.seal()
        for _ in range(2):
            server = self._server if self._server.alive else await asyncio.to_thread(self._restart)
            with server.fork(clip) as exchange:
                heard = await self._wait(server, exchange)
                text = exchange.text()  # once: who wrote it may not have ended yet
                if heard == DONE and not text:
                    heard = await self._wait(server, exchange)
                if heard:
                    return self._result(heard, text, exchange)
            server.kill()  # it died, and the clip's process with it, for which the clip need not be to blame: once more
        raise DecoderCrashed("the decoders died twice while this clip was read")

    def close(self) -> None:
        """Kill what is decoding and end the fork server. Blocks until that is done."""
        with self._changing:
            self._closed = True
            self._server.close()

    def _restart(self) -> "_ForkServer":
        with self._changing:
            if self._closed:
                raise DecodersError("the decoders have been closed")
            if not self._server.alive:
                logger.error("the fork server of the decoders died; another is started")
                self._server.close()
                self._server = _ForkServer(*self._program)
            return self._server

    async def _wait(self, server: "_ForkServer", exchange: "_Exchange") -> bytes:
        """DONE, or the process's wait status in digits once it has ended; nothing where the fork server did before."""
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return await exchange.hear()
        except TimeoutError as error:
            exchange.give_up()
            try:
                async with asyncio.timeout(KILL_S):
                    while await exchange.hear() == DONE:
                        pass
            except TimeoutError:
                server.kill()
            raise DecodeTimeout(f"the clip takes more than {self._limits.timeout_s:g} s to decode") from error

    def _result(self, heard: bytes, text: bytes, exchange: "_Exchange") -> DecodedClip:
        if not text:
            ended = os.waitstatus_to_exitcode(int(heard))
            reason = signal.strsignal(-ended) if ended < 0 else f"exit code {ended}"
            logger.warning("a decoder process died", extra={"reason": reason})
            raise DecoderCrashed("the decoder died while it read this clip")
        try:
            answer = _ANSWER.validate_json(text)
        except ValidationError as error:
            logger.warning("a decoder process gave an answer that is none", extra={"reason": str(error)})
            raise DecoderCrashed("the decoder lost its way while it read this clip") from error
        match answer:
            case _Found(facts, sampled) if 0 <= facts.duration_s <= self._limits.max_duration_s:
                return DecodedClip(exchange.frames(), facts, sampled)
            case _Refused(code, detail) if code in ERRORS:
                raise ERRORS[code](detail)
            case _Failed(failure):
                logger.error("a decoder process failed", extra={"traceback": failure})
        raise DecoderCrashed("the decoder lost its way while it read this clip")


class _Exchange:
    """What passes between the process of one clip and the service: a file in memory, and what the fork server says."""

    def __init__(self, answer: io.FileIO, socket_: socket.socket) -> None:
        self._answer, self._socket = answer, socket_
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Also tells the fork server, where the process has not ended, that nobody waits for it any more."""
        self._answer.close()
        self._socket.close()

    async def hear(self) -> bytes:
        """What the fork server says next; nothing where it can say no more."""
        return await asyncio.get_running_loop().sock_recv(self._socket, 16)

    def give_up(self) -> None:
        """Have the process killed; its wait status is then not long in coming."""
        self._socket.shutdown(socket.SHUT_WR)

    def text(self) -> bytes:
        """What is said of the frames; nothing where the process did not come to that."""
        return os.pread(self._answer.fileno(), ANSWER_BYTES - FRAMES_BYTES, FRAMES_BYTES).rstrip(b"\0")

    def frames(self) -> Image:
        """The frames, read-only and valid for as long as they are held."""
        room = mmap.mmap(self._answer.fileno(), ANSWER_BYTES, prot=mmap.PROT_READ)
        return np.frombuffer(room, np.uint8, FRAMES_BYTES).reshape(FRAMES_SHAPE)


def _room_for_an_answer() -> io.FileIO:
    file = file_in_memory("answer")
    file.truncate(ANSWER_BYTES)
    seal(file, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return file


class _ForkServer:
    """The process that decoder processes are forked from."""

    def __init__(self, program: str, *arguments: str) -> None:
        self._killed = False
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - ours
                [sys.executable, "-m", program, str(theirs.fileno()), *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # or a signal to the group ends it before it has learnt to ignore those
                env={name: os.environ[name] for name in INHERITED if name in os.environ} | ALLOCATION,
            )
        self._answer = _room_for_an_answer()  # of the next clip
        try:
            self._control.settimeout(START_S)
            socket.send_fds(self._control, [b"."], [self._answer.fileno()])
            self.grants = Grants(**json.loads(self._control.recv(4096)))
            self._control.setblocking(False)
        except (OSError, ValueError) as error:
            self.close()
            raise DecodersError(
                f"clips cannot be decoded: `python -m {program}` ended with {self._process.returncode} instead of "
                "starting; what it wrote on standard error has the reason"
            ) from error

    @property
    def alive(self) -> bool:
        return not self._killed and self._process.poll() is None

    def fork(self, clip: ClipFile) -> _Exchange:
        """Start the process of a clip. Where the server has died, nothing is heard."""
        with contextlib.ExitStack() as opened:
            next_answer = opened.enter_context(_room_for_an_answer())
            ours, theirs = map(opened.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            opened.pop_all()
        answer, self._answer = self._answer, next_answer
        with contextlib.suppress(OSError), theirs:
            socket.send_fds(self._control, [b"."], [clip.fileno(), theirs.fileno(), next_answer.fileno()])
        return _Exchange(answer, ours)

    def kill(self) -> None:
        """End it and, by that, the processes forked from it; ``close`` has still to be called."""
        self._killed = True
        self._process.kill()

    def close(self) -> None:
        """End it. Blocks until it has ended its processes and itself."""
        self._control.close()
        self._answer.close()
        try:
            self._process.wait(KILL_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
