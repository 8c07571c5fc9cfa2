"""One decoder process a clip: what a clip does to its decoder ends with it. Linux only.

A clip and its answer travel as anonymous files in memory. Nothing that comes back is believed unchecked: a hostile clip
may have taken its decoder over.
"""

import asyncio
import contextlib
import fcntl
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

from service.video.clip_file import ClipFile, file_in_memory, seal
from service.video.decoder import ClipFacts, DecodedClip, DecodeLimits, Image, SampledFrame
from service.video.errors import ClipError, DecoderCrashed, DecodeTimeout
from service.video.forkserver import ANSWER_BYTES, FRAMES_BYTES, FRAMES_SHAPE
from service.video.sampling import FRAME_COUNT
from service.video.sandbox import Grants

START_S = 120
# A killed process is gone within milliseconds; a fork server that cannot tell in this time is no good any more.
KILL_S = 5
# All that the fork server is told of this environment, which may hold secrets: where its code is.
INHERITED = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH")
# A process so short spends much of its life on fresh pages: huge ones save it a sixth of its time.
ALLOCATION = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "OPENBLAS_NUM_THREADS": "1"}
ERRORS: Mapping[str, type[ClipError]] = MappingProxyType({kind.code: kind for kind in ClipError.__subclasses__()})

logger = logging.getLogger(__name__)


class DecodersError(Exception):
    """Decoder processes cannot be started. One sentence with the remedy."""


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


class DecoderProcesses:
    """Decodes each clip in a process of its own that may do nothing but compute (see ``sandbox``).

    ``memory_bytes`` bounds the address space that a clip may take. ``program`` is the module that is the fork server.
    Starting takes half a second. Raises DecodersError.
    """

    def __init__(self, limits: DecodeLimits, *, memory_bytes: int, program: str = "service.video.forkserver") -> None:
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
            with _Exchange(clip) as exchange:
                server.fork(exchange)
                status = await self._wait(server, exchange)
                if status is not None:
                    return self._result(status, exchange)
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

    async def _wait(self, server: "_ForkServer", exchange: "_Exchange") -> int | None:
        """The process's wait status once it has ended; None where the fork server did before."""
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return await exchange.status()
        except TimeoutError as error:
            exchange.give_up()
            try:
                async with asyncio.timeout(KILL_S):
                    await exchange.status()
            except TimeoutError:
                server.kill()
            raise DecodeTimeout(f"the clip takes more than {self._limits.timeout_s:g} s to decode") from error

    def _result(self, status: int, exchange: "_Exchange") -> DecodedClip:
        ended = os.waitstatus_to_exitcode(status)
        if ended != 0:
            reason = signal.strsignal(-ended) if ended < 0 else f"exit code {ended}"
            logger.warning("a decoder process died", extra={"reason": reason})
            raise DecoderCrashed("the decoder died while it read this clip")
        frames, text = exchange.read()
        try:
            answer = _ANSWER.validate_json(text)
        except ValidationError as error:
            logger.warning("a decoder process gave an answer that is none", extra={"reason": str(error)})
            raise DecoderCrashed("the decoder lost its way while it read this clip") from error
        match answer:
            case _Found(facts, sampled) if 0 <= facts.duration_s <= self._limits.max_duration_s:
                return DecodedClip(frames, facts, sampled)
            case _Refused(code, detail) if code in ERRORS:
                raise ERRORS[code](detail)
            case _Failed(failure):
                logger.error("a decoder process failed", extra={"traceback": failure})
        raise DecoderCrashed("the decoder lost its way while it read this clip")


class _Exchange:
    """What passes between the service and the process of one clip: two files in memory and a pair of sockets."""

    def __init__(self, clip: ClipFile) -> None:
        self._clip = clip
        with contextlib.ExitStack() as opened:
            self._answer = opened.enter_context(file_in_memory("answer"))
            self._ours, self._theirs = map(opened.enter_context, socket.socketpair())
            self._opened = opened.pop_all()
        self._ours.setblocking(False)
        self._answer.truncate(ANSWER_BYTES)
        seal(self._answer, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Also tells the fork server, where the process has not ended, that nobody waits for it any more."""
        self._opened.close()

    def send_by(self, control: socket.socket) -> None:
        """Hand the other side over."""
        with contextlib.suppress(OSError), self._theirs:
            files = [self._clip.fileno(), self._answer.fileno(), self._theirs.fileno()]
            socket.send_fds(control, [b"."], files)

    async def status(self) -> int | None:
        """The process's wait status once it has ended, None where it cannot be known any more."""
        digits = await asyncio.get_running_loop().sock_recv(self._ours, 16)
        return int(digits) if digits else None

    def give_up(self) -> None:
        """Have the process killed; ``status`` is then not long in coming."""
        self._ours.shutdown(socket.SHUT_WR)

    def read(self) -> tuple[Image, bytes]:
        """The frames, read-only and valid for as long as they are held, and what is said of them."""
        room = mmap.mmap(self._answer.fileno(), ANSWER_BYTES, prot=mmap.PROT_READ)
        frames = np.frombuffer(room, np.uint8, FRAMES_BYTES).reshape(FRAMES_SHAPE)
        return frames, room[FRAMES_BYTES:].rstrip(b"\0")


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
        try:
            self._control.settimeout(START_S)
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

    def fork(self, exchange: _Exchange) -> None:
        """Start the process of a clip. Where the server has died, the exchange ends without a status."""
        exchange.send_by(self._control)

    def kill(self) -> None:
        """End it and, by that, the processes forked from it; ``close`` has still to be called."""
        self._killed = True
        self._process.kill()

    def close(self) -> None:
        """End it. Blocks until it has ended its processes and itself."""
        self._control.close()
        try:
            self._process.wait(KILL_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
