"""The program that decoder processes are forked from: ``python -m service.video.forkserver SOCKET MEMORY LIMITS``.

It has done once what every decoder would have to: imported PyAV and decoded a clip, after which FFmpeg's tables are
filled and nothing is left to import. One process is always forked ahead: it waits for a clip, and no clip for it.

``DecoderProcesses`` talks to it over a Unix socket. When it is ready it says, as JSON, what the sandbox is made of
here. Then it is sent one byte and three descriptors a clip: the clip, room for the answer, and a socket of the clip's
own. Over that comes the wait status of the clip's process once it has ended, in decimal digits; when the other side
shuts that socket before, the process is killed. When its own socket is shut the server kills every process and ends.
"""

import contextlib
import gc
import io
import json
import math
import mmap
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import numpy as np

from service.video.decoder import IMAGE_SIZE, DecodedClip, DecodeLimits, Image, decode_clip
from service.video.errors import ClipError, DecoderCrashed
from service.video.rendering import render_clip
from service.video.sampling import FRAME_COUNT
from service.video.sandbox import die_with, enter

# An answer: the frames, then a JSON object and zeros.
FRAMES_SHAPE = (FRAME_COUNT, IMAGE_SIZE, IMAGE_SIZE, 3)
FRAMES_BYTES = math.prod(FRAMES_SHAPE)
ANSWER_BYTES = FRAMES_BYTES + 64 * 1024
MOST_WORDS = 8000  # of an error's text, each up to six bytes of JSON

Decode = Callable[[BinaryIO, DecodeLimits, Image], DecodedClip]


@dataclass(frozen=True, slots=True)
class Decoder:
    """What happens in a forked process, and what it may cost. `exercise` is a clip of our own to warm up with."""

    decode: Decode
    limits: DecodeLimits
    memory_bytes: int
    exercise: bytes

    def fork(self) -> "Process":
        """A new process that waits for its clip."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        with theirs:
            return Process(os.fork() or self._work(theirs, parent), ours)

    def _work(self, channel: socket.socket, parent: int) -> NoReturn:
        """Decode in the sandbox, write the answer, and end. Exit code 0 says that there is an answer."""
        try:
            die_with(parent)
            signal.set_wakeup_fd(-1)
            ours = socket.socket(fileno=_only_open(channel.detach()))
            # A fresh process copies every page that it writes to for the first time. Better now, while nobody waits.
            self.decode(io.BytesIO(self.exercise), DecodeLimits(), np.empty(FRAMES_SHAPE, np.uint8))
            clip, answer = _await_clip(ours)
            room = mmap.mmap(answer, ANSWER_BYTES)
            source = io.FileIO(_only_open(clip), closefd=False)
            source.seek(0)
            try:
                found = self._decode(cast(BinaryIO, source), room)
            except ClipError as error:
                found = {"code": error.code, "detail": str(error)[:MOST_WORDS]}
            except MemoryError:
                found = {"code": DecoderCrashed.code, "detail": "the clip takes more memory to decode than allowed"}
            except BaseException:
                found = {"failure": traceback.format_exc()[-MOST_WORDS:]}
            text = json.dumps(found).encode()
            room[FRAMES_BYTES : FRAMES_BYTES + len(text)] = text
            os._exit(0)
        finally:
            os._exit(1)

    def _decode(self, source: BinaryIO, room: mmap.mmap) -> dict[str, Any]:
        grants = enter(memory_bytes=self.memory_bytes, cpu_s=math.ceil(self.limits.timeout_s + 1))
        frames = np.frombuffer(room, np.uint8, FRAMES_BYTES).reshape(FRAMES_SHAPE)
        clip = self.decode(source, self.limits, frames)
        return {
            "facts": asdict(clip.facts),
            "sampled": [asdict(frame) for frame in clip.sampled],
            "grants": asdict(grants),
        }


@dataclass(frozen=True, slots=True)
class Process:
    """A forked process, and the socket over which it hears what to decode."""

    pid: int
    channel: socket.socket

    def start(self, clip: int, answer: int) -> None:
        """Hand over the descriptors. Where it has died, its wait status tells."""
        with contextlib.suppress(OSError), self.channel:
            socket.send_fds(self.channel, [b"."], [clip, answer])


class ForkServer:
    """Gives each clip a process of its own, forked before it came, until its socket is shut."""

    def __init__(self, control: socket.socket, decoder: Decoder) -> None:
        self._control = control
        self._decoder = decoder
        self._callers: dict[int, socket.socket] = {}
        self._child_ended, wakeup = socket.socketpair()
        self._child_ended.setblocking(False)
        wakeup.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup.detach())
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._child_ended, selectors.EVENT_READ)
        self._ready: Process | None = decoder.fork()

    def serve(self) -> None:
        """Returns when the socket has been shut and every process has ended."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._child_ended:
                    self._reap()
                elif key.fileobj is not self._control:
                    self._give_up(key.data)
                elif not self._accept():
                    self._kill_all()
                    return

    def _accept(self) -> bool:
        """Start on the next clip; False where there is none any more."""
        _, descriptors, _, _ = socket.recv_fds(self._control, 1, 3)
        if not descriptors:
            return False
        clip, answer, caller = descriptors
        process = self._ready or self._decoder.fork()
        process.start(clip, answer)
        os.close(clip)
        os.close(answer)
        self._callers[process.pid] = socket.socket(fileno=caller)
        self._selector.register(self._callers[process.pid], selectors.EVENT_READ, process.pid)
        self._ready = self._decoder.fork()
        return True

    def _give_up(self, pid: int) -> None:
        """The caller does not wait any more."""
        if pid in self._callers:  # else it has just been reaped, and the number may be another's
            os.kill(pid, signal.SIGKILL)
            self._selector.unregister(self._callers[pid])

    def _reap(self) -> None:
        self._child_ended.recv(4096)
        while self._callers or self._ready:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if self._ready and pid == self._ready.pid:  # killed; another is forked when a clip comes
                self._ready.channel.close()
                self._ready = None
                continue
            caller = self._callers.pop(pid)
            with contextlib.suppress(KeyError):  # where it was given up
                self._selector.unregister(caller)
            with contextlib.suppress(OSError), caller:
                caller.send(b"%d" % status)

    def _kill_all(self) -> None:
        left = [*self._callers, *([self._ready.pid] if self._ready else [])]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        for pid in left:
            os.waitpid(pid, 0)


def warm_up(decoder: Decoder) -> dict[str, Any]:
    """Decode here, so that everything is imported; then in the sandbox. Returns what that is made of.

    Raises RuntimeError, with the reason, where nothing can be decoded in the sandbox.
    """
    clip, frames = decoder.exercise, np.empty(FRAMES_SHAPE, np.uint8)
    decoder.decode(io.BytesIO(clip), decoder.limits, frames)
    with contextlib.suppress(ClipError):  # failing needs code, too
        decoder.decode(io.BytesIO(clip[:100]), decoder.limits, frames)
    with os.fdopen(os.memfd_create("clip"), "wb") as source, os.fdopen(os.memfd_create("answer"), "w+b") as answer:
        source.write(clip)
        source.flush()
        answer.truncate(ANSWER_BYTES)
        process = decoder.fork()
        process.start(source.fileno(), answer.fileno())
        _, status = os.waitpid(process.pid, 0)
        answer.seek(FRAMES_BYTES)
        found = answer.read().rstrip(b"\0")
    try:
        grants: dict[str, Any] = json.loads(found)["grants"]
    except (ValueError, KeyError) as error:
        raise RuntimeError(f"no clip can be decoded in the sandbox: wait status {status}, {found!r}") from error
    return grants


def main(decode: Decode = decode_clip) -> None:
    """Serve until the socket is shut. Signals meant for the whole group, as from a terminal, leave it alone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    descriptor, memory_bytes, limits = sys.argv[1:]
    exercise = render_clip(frames=4, width=64, height=48).data
    decoder = Decoder(decode, DecodeLimits(**json.loads(limits)), int(memory_bytes), exercise)
    with socket.socket(fileno=int(descriptor)) as control:
        grants = warm_up(replace(decoder, limits=DecodeLimits()))  # whatever is asked of strangers' clips
        gc.collect()
        gc.freeze()  # or every process copies the pages that its collector marks
        server = ForkServer(control, decoder)
        control.send(json.dumps(grants).encode())
        server.serve()


def _await_clip(channel: socket.socket) -> list[int]:
    """The descriptors of clip and answer, once they come; then the process has the name of one that decodes."""
    _, descriptors, _, _ = socket.recv_fds(channel, 1, 2)
    with contextlib.suppress(OSError):  # where /proc may not be written to
        Path("/proc/self/comm").write_text("decoder")
    return descriptors


def _only_open(descriptor: int) -> int:
    """Close every descriptor but this, which becomes the one returned; the standard streams lead nowhere."""
    os.dup2(descriptor, 3)
    for stream in (1, 2):
        os.dup2(0, stream)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    return 3


if __name__ == "__main__":
    main()
