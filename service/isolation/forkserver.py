"""The program that decoder processes are forked from: ``python -m service.isolation.forkserver SOCKET MEMORY LIMITS``.

It has done once what every decoder would have to: imported PyAV and decoded a clip, after which FFmpeg's tables are
filled and nothing is left to import. One process is always forked ahead: it waits for a clip, and no clip for it.

``DecoderProcesses`` talks to it over a Unix socket. When it is ready it says, as JSON, what the sandbox is made of
here. Then it is sent one byte and a descriptor, room for the first clip's answer, and for each clip one byte and three:
the clip, a socket of its own, and room for the next clip's answer, which the process that waits for that can thus make
its own beforehand. When a process has closed its channel, which is all that it may do to say so, it is done: it is
killed, and DONE goes over the clip's socket; then, once it has ended, its wait status in decimal digits. When the other
side shuts the clip's socket before, the process is killed, too. While one that is killed has not ended no other clip is
started. When the server's own socket is shut it kills every process and ends.
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
from service.isolation.sandbox import die_with, enter
from service.video.decoder import IMAGE_SIZE, DecodedClip, DecodeLimits, Image, decode_clip
from service.video.sampling import FRAME_COUNT

# An answer: the frames, then a JSON object and zeros.
FRAMES_SHAPE = (FRAME_COUNT, IMAGE_SIZE, IMAGE_SIZE, 3)
FRAMES_BYTES = math.prod(FRAMES_SHAPE)
ANSWER_BYTES = FRAMES_BYTES + 64 * 1024
DONE = b"done"  # on a clip's socket
# Four frames of 64×48; the renderer's output, committed so that the service renders nothing.
WARM_UP_CLIP = Path(__file__).with_name("warmup.mp4")
MOST_WORDS = 8000  # of an error's text, each up to six bytes of JSON

Decode = Callable[[BinaryIO, DecodeLimits, Image], DecodedClip]


@dataclass(frozen=True, slots=True)
class Decoder:
    """What happens in a forked process, and what it may cost. `exercise` is a clip of our own to warm up with."""

    decode: Decode
    limits: DecodeLimits
    memory_bytes: int
    exercise: bytes

    def fork(self, answer: int) -> "Process":
        """A new process that waits for its clip, with room for what it will say of it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        with theirs:
            return Process(os.fork() or self._work(theirs, answer, parent), ours)

    def _work(self, channel: socket.socket, answer: int, parent: int) -> NoReturn:
        """Decode in the sandbox, write the answer, and end."""
        try:
            die_with(parent)
            signal.set_wakeup_fd(-1)
            room = mmap.mmap(answer, ANSWER_BYTES)
            frames = np.frombuffer(room, np.uint8, FRAMES_BYTES).reshape(FRAMES_SHAPE)
            ours = socket.socket(fileno=_only_open(channel.detach()))
            # A fresh process copies every page that it writes to for the first time. Better now, while nobody waits.
            self.decode(io.BytesIO(self.exercise), DecodeLimits(), frames)
            source = io.FileIO(_await_clip(ours), closefd=False)
            source.seek(0)
            try:
                found = self._decode(cast(BinaryIO, source), frames)
            except ClipError as error:
                found = {"code": error.code, "detail": str(error)[:MOST_WORDS]}
            except MemoryError:
                found = {"code": DecoderCrashed.code, "detail": "the clip takes more memory to decode than allowed"}
            except BaseException:
                found = {"failure": traceback.format_exc()[-MOST_WORDS:]}
            text = json.dumps(found).encode()
            room[FRAMES_BYTES : FRAMES_BYTES + len(text)] = text
            ours.close()  # says so: freeing a process's memory takes the kernel longer than an answer has to wait
            os._exit(0)
        finally:
            os._exit(1)

    def _decode(self, source: BinaryIO, frames: Image) -> dict[str, Any]:
        grants = enter(memory_bytes=self.memory_bytes, cpu_s=math.ceil(self.limits.timeout_s + 1))
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

    def start(self, clip: int) -> None:
        """Hand over its clip. Where it has died, its wait status tells."""
        with contextlib.suppress(OSError):
            socket.send_fds(self.channel, [b"."], [clip])


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip that is decoded: its process, and the socket of who waits for it."""

    process: Process
    caller: socket.socket


class ForkServer:
    """Gives each clip a process of its own, forked before it came, until its socket is shut."""

    def __init__(self, control: socket.socket, decoder: Decoder) -> None:
        self._control = control
        self._decoder = decoder
        self._clips: dict[int, Clip] = {}  # by process
        self._killed: set[int] = set()  # of these
        self._child_ended, wakeup = socket.socketpair()
        self._child_ended.setblocking(False)
        wakeup.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup.detach())
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._child_ended, selectors.EVENT_READ)
        _, (self._answer,), _, _ = socket.recv_fds(control, 1, 1)
        self._ready: Process | None = decoder.fork(self._answer)

    def serve(self) -> None:
        """Returns when the socket has been shut and every process has ended."""
        while True:
            asked = False
            for key, _ in self._selector.select():
                if key.fileobj is self._child_ended:
                    self._reap()
                elif key.fileobj is self._control:
                    asked = True  # last: a clip that was given up before this one came must be killed before it starts
                else:
                    self._stop(key.data, done=key.fileobj is key.data.process.channel)
            if asked and not self._killed and not self._accept():
                self._kill_all()
                return

    def _accept(self) -> bool:
        """Start on the next clip; False where there is none any more."""
        _, descriptors, _, _ = socket.recv_fds(self._control, 1, 3)
        if not descriptors:
            return False
        data, caller, next_answer = descriptors
        process = self._ready or self._decoder.fork(self._answer)
        process.start(data)
        os.close(data)
        os.close(self._answer)
        self._answer = next_answer
        clip = self._clips[process.pid] = Clip(process, socket.socket(fileno=caller))
        self._selector.register(clip.caller, selectors.EVENT_READ, clip)
        self._selector.register(process.channel, selectors.EVENT_READ, clip)
        self._ready = self._decoder.fork(self._answer)
        return True

    def _stop(self, clip: Clip, *, done: bool) -> None:
        """The process says that it is done, or its caller does not wait any more."""
        pid = clip.process.pid
        if self._clips.get(pid) is not clip or pid in self._killed:
            return  # it has just been reaped, and the number may be another's; or both came at once
        os.kill(pid, signal.SIGKILL)
        self._unwatch(clip)
        if not self._killed:
            self._selector.unregister(self._control)  # no further clip until it has ended
        self._killed.add(pid)
        if done:
            with contextlib.suppress(OSError):
                clip.caller.send(DONE)

    def _reap(self) -> None:
        self._child_ended.recv(4096)
        while self._clips or self._ready:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if self._ready and pid == self._ready.pid:  # killed; another is forked when a clip comes
                self._ready.channel.close()
                self._ready = None
                continue
            clip = self._clips.pop(pid)
            if pid not in self._killed:
                self._unwatch(clip)
            elif len(self._killed) == 1:
                self._selector.register(self._control, selectors.EVENT_READ)
            self._killed.discard(pid)
            with contextlib.suppress(OSError), clip.process.channel, clip.caller:
                clip.caller.send(b"%d" % status)

    def _unwatch(self, clip: Clip) -> None:
        self._selector.unregister(clip.caller)
        self._selector.unregister(clip.process.channel)

    def _kill_all(self) -> None:
        left = [*self._clips, *([self._ready.pid] if self._ready else [])]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        for pid in left:
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
        process = decoder.fork(answer.fileno())
        process.start(source.fileno())
        with process.channel:
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
    import_pyav()
    decoder = Decoder(decode, DecodeLimits(**json.loads(limits)), int(memory_bytes), WARM_UP_CLIP.read_bytes())
    with socket.socket(fileno=int(descriptor)) as control:
        grants = warm_up(replace(decoder, limits=DecodeLimits()))  # whatever is asked of strangers' clips
        gc.collect()
        gc.freeze()  # or every process copies the pages that its collector marks
        with contextlib.suppress(AttributeError):  # where the C library is not glibc
            ctypes.CDLL(None).malloc_trim(0)  # or every process copies free memory to write to it
        server = ForkServer(control, decoder)
        control.send(json.dumps(grants).encode())
        server.serve()


def _await_clip(channel: socket.socket) -> int:
    """The clip's descriptor, once it comes; then the process has the name of one that decodes."""
    _, (clip,), _, _ = socket.recv_fds(channel, 1, 1)
    with contextlib.suppress(OSError):  # where /proc may not be written to
        Path("/proc/self/comm").write_text("decoder")
    return clip


def _only_open(descriptor: int) -> int:
    """Close every descriptor but this, which becomes the one returned; the standard streams lead nowhere."""
    os.dup2(descriptor, 3)
    for stream in (1, 2):
        os.dup2(0, stream)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    return 3


if __name__ == "__main__":
    main()
