"""The fork server: a program from which one decoder process is forked for each clip.

``processes.DecoderProcesses`` starts it as ``python -m service.isolation.forkserver SOCKET MEMORY_BYTES LIMITS``. It
imports PyAV and decodes a clip once, which fills FFmpeg's tables, so that a forked process has nothing left to do but
decode. One process is always forked ahead and waits for the next clip.

The protocol runs over Unix sockets of the type ``SOCK_SEQPACKET``. Descriptors are sent along with a byte that means
nothing.

1. The service sends a descriptor on the control socket: the file for the first clip's answer.
2. When the fork server is ready, it sends the layers of the sandbox (``Grants``) as JSON.
3. For each clip the service sends three descriptors: the clip, a socket for this clip, and the file for the *next*
   clip's answer. The process that is forked ahead maps that file before its clip arrives.
4. A decoder process writes its answer into the file and closes its channel to the fork server, which is all that the
   sandbox allows it to do with the channel. The fork server kills it and sends ``DONE`` on the clip's socket; once the
   process has ended, it sends the wait status in decimal digits.
5. When the service shuts the clip's socket down, the fork server kills the process.
6. When the control socket is closed, the fork server kills every process and ends.

No clip is started while a killed process has not ended, so that no more clips than the service allows are in memory.
"""

import contextlib
import ctypes
import gc
import importlib
import io
import json
import math
import mmap
import os
import pkgutil
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import av
import numpy as np

from service.errors import ClipError, DecoderCrashed
from service.isolation.sandbox import die_with_parent, enter_sandbox
from service.video.decoder import IMAGE_SIZE, DecodedClip, DecodeLimits, Image, decode_clip
from service.video.sampling import FRAME_COUNT

# An answer is the frames, then a report: a JSON object, padded with zeros.
FRAMES_SHAPE = (FRAME_COUNT, IMAGE_SIZE, IMAGE_SIZE, 3)
FRAMES_BYTES = math.prod(FRAMES_SHAPE)
ANSWER_BYTES = FRAMES_BYTES + 64 * 1024
DONE = b"done"  # on a clip's socket
# Four frames of 64×48 from `model_export.rendering`, committed because the service itself renders nothing.
WARM_UP_CLIP = Path(__file__).with_name("warmup.mp4")
MAX_ERROR_CHARACTERS = 8000  # each takes up to six bytes of JSON, and the report has room for 64 KiB

Decode = Callable[[BinaryIO, DecodeLimits, Image], DecodedClip]


@dataclass(frozen=True, slots=True)
class Decoder:
    """What a forked process runs, and the limits that it runs under.

    Attributes:
        decode: Decodes a clip; tests replace it with hostile code.
        limits: Limits on the clip.
        memory_bytes: Address space that decoding may use.
        warm_up_clip: A trusted clip that each process decodes before its own clip arrives.
    """

    decode: Decode
    limits: DecodeLimits
    memory_bytes: int
    warm_up_clip: bytes

    def fork(self, answer: int) -> "DecoderProcess":
        """Fork a process that waits for its clip and will write to the file with the descriptor ``answer``."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        with theirs:
            return DecoderProcess(os.fork() or self._run(theirs, answer, parent), ours)

    def _run(self, channel: socket.socket, answer: int, parent: int) -> NoReturn:
        """Receive a clip, decode it in the sandbox, write the answer, and exit. Runs in the forked process."""
        try:
            die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            memory = mmap.mmap(answer, ANSWER_BYTES)
            frames = np.frombuffer(memory, np.uint8, FRAMES_BYTES).reshape(FRAMES_SHAPE)
            channel = socket.socket(fileno=_close_all_but(channel.detach()))
            # A forked process copies each page when it first writes to it: do so now, while no request waits for it.
            self.decode(io.BytesIO(self.warm_up_clip), DecodeLimits(), frames)
            clip = io.FileIO(_receive_clip(channel), closefd=False)
            clip.seek(0)
            try:
                report = self._decode(cast(BinaryIO, clip), frames)
            except ClipError as error:
                report = {"code": error.code, "detail": str(error)[:MAX_ERROR_CHARACTERS]}
            except MemoryError:
                report = {"code": DecoderCrashed.code, "detail": "decoding the clip takes more memory than allowed"}
            except BaseException:
                report = {"failure": traceback.format_exc()[-MAX_ERROR_CHARACTERS:]}
            text = json.dumps(report).encode()
            memory[FRAMES_BYTES : FRAMES_BYTES + len(text)] = text
            # The fork server answers the service when the channel is closed, not when this process has ended: the
            # kernel takes longer to free the process's memory than an answer should be delayed.
            channel.close()
            os._exit(0)
        finally:
            os._exit(1)

    def _decode(self, clip: BinaryIO, frames: Image) -> dict[str, Any]:
        """Enter the sandbox, decode ``clip`` into ``frames``, and return the report."""
        grants = enter_sandbox(memory_bytes=self.memory_bytes, cpu_s=math.ceil(self.limits.timeout_s + 1))
        decoded = self.decode(clip, self.limits, frames)
        return {
            "facts": asdict(decoded.facts),
            "sampled": [asdict(frame) for frame in decoded.sampled],
            "grants": asdict(grants),
        }


@dataclass(frozen=True, slots=True)
class DecoderProcess:
    """A forked process, as the fork server sees it. The clip is sent to it over ``channel``."""

    pid: int
    channel: socket.socket

    def start(self, clip: int) -> None:
        """Send the clip's descriptor. If the process has died, its wait status will show it."""
        with contextlib.suppress(OSError):
            socket.send_fds(self.channel, [b"."], [clip])


@dataclass(frozen=True, slots=True)
class RunningClip:
    """A clip that is being decoded: its process, and the socket on which the service waits for it."""

    process: DecoderProcess
    caller: socket.socket


class ForkServer:
    """Starts the process that is forked ahead for each clip, and forks the next one.

    Args:
        control: The socket to the service.
        decoder: What the forked processes run.
    """

    def __init__(self, control: socket.socket, decoder: Decoder) -> None:
        self._control = control
        self._decoder = decoder
        self._clips: dict[int, RunningClip] = {}  # by process id
        self._killed: set[int] = set()  # process ids in _clips that have not ended yet
        self._child_ended, wakeup = socket.socketpair()
        self._child_ended.setblocking(False)
        wakeup.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup.detach())
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._child_ended, selectors.EVENT_READ)
        _, (self._answer,), _, _ = socket.recv_fds(control, 1, 1)
        self._waiting: DecoderProcess | None = decoder.fork(self._answer)

    def serve(self) -> None:
        """Serve clips until the control socket is closed. Returns when every process has ended."""
        while True:
            requested = False
            for key, _ in self._selector.select():
                if key.fileobj is self._child_ended:
                    self._reap()
                elif key.fileobj is self._control:
                    requested = True  # handled last: clips cancelled before it arrived must be killed first
                else:
                    self._kill(key.data, done=key.fileobj is key.data.process.channel)
            if requested and not self._killed and not self._accept():
                self._kill_all()
                return

    def _accept(self) -> bool:
        """Start the next clip. Returns False if the control socket is closed."""
        _, descriptors, _, _ = socket.recv_fds(self._control, 1, 3)
        if not descriptors:
            return False
        data, caller, next_answer = descriptors
        process = self._waiting or self._decoder.fork(self._answer)
        process.start(data)
        os.close(data)
        os.close(self._answer)
        self._answer = next_answer
        clip = self._clips[process.pid] = RunningClip(process, socket.socket(fileno=caller))
        self._selector.register(clip.caller, selectors.EVENT_READ, clip)
        self._selector.register(process.channel, selectors.EVENT_READ, clip)
        self._waiting = self._decoder.fork(self._answer)
        return True

    def _kill(self, clip: RunningClip, *, done: bool) -> None:
        """Kill a clip's process, because it is done or because the service no longer waits for it."""
        pid = clip.process.pid
        if self._clips.get(pid) is not clip or pid in self._killed:
            return  # the process has just been reaped, and its id may be reused; or both events came at once
        os.kill(pid, signal.SIGKILL)
        self._unwatch(clip)
        if not self._killed:
            self._selector.unregister(self._control)  # start no clip until the process has ended
        self._killed.add(pid)
        if done:
            with contextlib.suppress(OSError):
                clip.caller.send(DONE)

    def _reap(self) -> None:
        """Send the wait status of each process that has ended to the service."""
        self._child_ended.recv(4096)
        while self._clips or self._waiting:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if self._waiting and pid == self._waiting.pid:  # it was killed; the next clip has another forked
                self._waiting.channel.close()
                self._waiting = None
                continue
            clip = self._clips.pop(pid)
            if pid not in self._killed:
                self._unwatch(clip)
            elif len(self._killed) == 1:
                self._selector.register(self._control, selectors.EVENT_READ)
            self._killed.discard(pid)
            with contextlib.suppress(OSError), clip.process.channel, clip.caller:
                clip.caller.send(b"%d" % status)

    def _unwatch(self, clip: RunningClip) -> None:
        self._selector.unregister(clip.caller)
        self._selector.unregister(clip.process.channel)

    def _kill_all(self) -> None:
        """Kill every process and wait for its end."""
        pids = [*self._clips, *([self._waiting.pid] if self._waiting else [])]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


def import_pyav() -> None:
    """Import every module of PyAV.

    PyAV imports some of its modules when it first needs them: ``av.subtitles`` when a container has a subtitle track,
    for example. Inside the sandbox no file can be opened, so every module that a clip might need is imported before.
    """
    skipped = {"av.__main__", "av.datasets"}  # the command line, and a downloader of samples
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if module.name not in skipped:
            importlib.import_module(module.name)


def warm_up(decoder: Decoder) -> dict[str, Any]:
    """Decode the warm-up clip in this process, so that every module is imported, and then in the sandbox.

    Returns:
        The fields of ``Grants``: the layers of the sandbox that the kernel grants.

    Raises:
        RuntimeError: No clip can be decoded in the sandbox; the message has the reason.
    """
    clip, frames = decoder.warm_up_clip, np.empty(FRAMES_SHAPE, np.uint8)
    decoder.decode(io.BytesIO(clip), decoder.limits, frames)
    with contextlib.suppress(ClipError):  # so that the code that handles errors is loaded, too
        decoder.decode(io.BytesIO(clip[:100]), decoder.limits, frames)
    with os.fdopen(os.memfd_create("clip"), "wb") as source, os.fdopen(os.memfd_create("answer"), "w+b") as answer:
        source.write(clip)
        source.flush()
        answer.truncate(ANSWER_BYTES)
        process = decoder.fork(answer.fileno())
        process.start(source.fileno())
        with process.channel:
            _, status = os.waitpid(process.pid, 0)
        answer.seek(FRAMES_BYTES)
        report = answer.read().rstrip(b"\0")
    try:
        grants: dict[str, Any] = json.loads(report)["grants"]
    except (ValueError, KeyError) as error:
        raise RuntimeError(f"no clip can be decoded in the sandbox: wait status {status}, {report!r}") from error
    return grants


def main(decode: Decode = decode_clip) -> None:
    """Run the fork server until its control socket is closed.

    SIGINT, SIGTERM and SIGHUP are ignored: they may be sent to the whole process group, as by a terminal, and the
    service decides when decoding ends.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    descriptor, memory_bytes, limits = sys.argv[1:]
    import_pyav()
    decoder = Decoder(decode, DecodeLimits(**json.loads(limits)), int(memory_bytes), WARM_UP_CLIP.read_bytes())
    with socket.socket(fileno=int(descriptor)) as control:
        grants = warm_up(replace(decoder, limits=DecodeLimits()))  # the configured limits may exclude the warm-up clip
        gc.collect()
        gc.freeze()  # otherwise each process copies the pages that its garbage collector marks
        with contextlib.suppress(AttributeError):  # C libraries other than glibc have no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)  # otherwise each process copies pages of free memory to write to them
        server = ForkServer(control, decoder)
        with contextlib.suppress(ConnectionError):  # the service may have ended meanwhile
            control.send(json.dumps(grants).encode())
        server.serve()


def _receive_clip(channel: socket.socket) -> int:
    """Wait for the clip's descriptor, then name the process "decoder", to distinguish it from one that still waits."""
    _, (clip,), _, _ = socket.recv_fds(channel, 1, 1)
    with contextlib.suppress(OSError):  # /proc may be read-only
        Path("/proc/self/comm").write_text("decoder")
    return clip


def _close_all_but(descriptor: int) -> int:
    """Close every descriptor but this one and the standard streams, which are pointed at standard input (/dev/null).

    Returns:
        The descriptor's new number, 3.
    """
    os.dup2(descriptor, 3)
    for stream in (1, 2):
        os.dup2(0, stream)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    return 3


if __name__ == "__main__":
    main()
