"""The fork server: a program from which one decoder process is forked for each clip.

``processes.DecoderProcesses`` starts it as ``python -P -m service.isolation.forkserver SOCKET MEMORY_BYTES LIMITS``. It
imports PyAV and decodes a clip once, which fills FFmpeg's tables, so that a forked process has nothing left to do but
decode. One process is always forked ahead and waits for the next clip.

The protocol runs over Unix sockets of the type ``SOCK_SEQPACKET``. Descriptors are sent along with a byte that means
nothing.

1. The service sends a descriptor on the control socket: the file for the first clip's answer.
2. When the fork server is ready, it sends the layers of the sandbox (``Grants``) as JSON. From then on it sends its
   state each second and whenever it changes: ``OK``, or the reason why no process can be forked, which it tries again
   each second. A fork server that sends nothing for several seconds is replaced.
3. For each clip the service sends three descriptors: the clip, a socket for this clip, and the file for the *next*
   clip's answer. The process that is forked ahead maps that file before its clip arrives.
4. A decoder process sends a byte on its channel to the fork server when it is ready for its clip. Once it has its
   clip, the sandbox allows it only to close the channel, which it does when it has written its answer into the file.
   The fork server kills it and sends ``DONE`` on the clip's socket; once the process has ended, it sends the wait
   status and the processor time in seconds, as in ``b"9 20.5"``.
5. If no process can be forked for a clip, or the process ends before it is ready, the fork server sends ``UNAVAILABLE``
   on the clip's socket instead.
6. When the service shuts the clip's socket down, the fork server kills the process.
7. When the control socket is closed, the fork server kills every process and ends.

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
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import av
import numpy as np

from service.errors import ClipError
from service.isolation.sandbox import die_with_parent, enter_sandbox
from service.video.decoder import IMAGE_SIZE, DecodedClip, DecodeLimits, Image, decode_clip
from service.video.sampling import FRAME_COUNT

# An answer is the frames, then a report: a JSON object, padded with zeros.
FRAMES_SHAPE = (FRAME_COUNT, IMAGE_SIZE, IMAGE_SIZE, 3)
FRAMES_BYTES = math.prod(FRAMES_SHAPE)
ANSWER_BYTES = FRAMES_BYTES + 64 * 1024
DONE, UNAVAILABLE = b"done", b"unavailable"  # on a clip's socket
OK = b"ok"  # on the control socket
BEAT_S = 1.0  # between two messages about the fork server's state
OUT_OF_MEMORY = 77  # exit code of a process that may not use as much memory as its clip needs
# Four frames of 64×48 from `model_export.rendering`, committed because the service itself renders nothing.
WARM_UP_CLIP = Path(__file__).with_name("warmup.mp4")
MAX_DETAIL_CHARACTERS = 500  # of the text of a ``ClipError``
MAX_FAILURE_CHARACTERS = 8000  # of a traceback; each takes up to six bytes of JSON, and the report has room for 64 KiB

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
        """Fork a process that waits for its clip and will write to the file with the descriptor ``answer``.

        Raises:
            OSError: The kernel refuses, for example because of a limit on the number of processes.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        with theirs:
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                raise
            return DecoderProcess(pid or self._run(theirs, answer, parent), ours)

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
            channel.send(b".")
            clip = io.FileIO(_receive_clip(channel), closefd=False)
            clip.seek(0)
            try:
                report = self._decode(cast(BinaryIO, clip), frames)
            except ClipError as error:
                report = {"code": error.code, "detail": str(error)[:MAX_DETAIL_CHARACTERS]}
            except MemoryError:
                os._exit(OUT_OF_MEMORY)
            except BaseException:
                report = {"failure": traceback.format_exc()[-MAX_FAILURE_CHARACTERS:]}
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
        # The limit counts the warm-up, too. It ends a call of a library that takes too long, which nothing else can do.
        cpu_s = math.ceil(time.process_time() + self.limits.timeout_s + 1)
        grants = enter_sandbox(memory_bytes=self.memory_bytes, cpu_s=cpu_s)
        decoded = self.decode(clip, self.limits, frames)
        return {
            "facts": asdict(decoded.facts),
            "sampled": [asdict(frame) for frame in decoded.sampled],
            "grants": asdict(grants),
        }


@dataclass(slots=True)
class DecoderProcess:
    """A forked process, as the fork server sees it.

    Attributes:
        pid: Its process id.
        channel: The socket to it, over which its clip is sent.
        ready: Whether it has said that it is ready for its clip.
        caller: The socket on which the service waits for its clip; ``None`` until it has one.
    """

    pid: int
    channel: socket.socket
    ready: bool = False
    caller: socket.socket | None = None

    def start(self, clip: int) -> None:
        """Send the clip's descriptor. If the process has died, its wait status will show it."""
        with contextlib.suppress(OSError):
            socket.send_fds(self.channel, [b"."], [clip])

    def hear_ready(self) -> bool:
        """Return whether the process has just said that it is ready. Call it when the channel can be read."""
        if self.ready:
            return False
        with contextlib.suppress(ConnectionError):  # it ended with its clip unread
            self.ready = bool(self.channel.recv(1))
        return self.ready

    def answer(self, message: bytes) -> None:
        """Send a message about the clip to the service, if it still waits for one."""
        if self.caller:
            with contextlib.suppress(OSError):
                self.caller.send(message)

    def close(self) -> None:
        """Close the sockets, after the process has ended."""
        self.channel.close()
        if self.caller:
            self.caller.close()


class ForkServer:
    """Starts the process that is forked ahead for each clip, and forks the next one.

    Args:
        control: The socket to the service.
        decoder: What the forked processes run.
        answer: The descriptor of the file for the first clip's answer.
    """

    def __init__(self, control: socket.socket, decoder: Decoder, answer: int) -> None:
        self._control = control
        self._decoder = decoder
        self._processes: dict[int, DecoderProcess] = {}  # by process id
        self._killed: set[int] = set()  # process ids in _processes that have not ended yet
        self._state = OK
        self._next_beat = 0.0  # on the clock of ``time.monotonic()``
        self._child_ended, wakeup = socket.socketpair()
        self._child_ended.setblocking(False)
        wakeup.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup.detach())
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._child_ended, selectors.EVENT_READ)
        self._answer = answer
        self._waiting = self._fork()  # the process that is forked ahead

    def serve(self) -> None:
        """Serve clips until the control socket is closed. Returns when every process has ended."""
        while True:
            requested = False
            self._beat()
            for key, _ in self._selector.select(max(0, self._next_beat - time.monotonic())):
                if key.fileobj is self._child_ended:
                    self._reap()
                elif key.fileobj is self._control:
                    requested = True  # handled last: clips cancelled before it arrived must be killed first
                else:
                    self._hear(key.data, on_channel=key.fileobj is key.data.channel)
            if requested and not self._killed and not self._accept():
                self._kill_all()
                return

    def _beat(self) -> None:
        """Fork a process ahead if there is none, and send the state, if it has changed or was sent a second ago."""
        if time.monotonic() < self._next_beat:
            return
        self._waiting = self._waiting or self._fork()
        self._next_beat = time.monotonic() + BEAT_S
        with contextlib.suppress(OSError):  # nobody reads it: the service is stopped, or has ended
            self._control.send(self._state, socket.MSG_DONTWAIT)

    def _set_state(self, state: bytes) -> None:
        if state != self._state:
            self._state = state
            self._next_beat = 0.0

    def _fork(self) -> DecoderProcess | None:
        """Fork a process and watch its channel. Returns ``None`` if the kernel refuses."""
        try:
            process = self._decoder.fork(self._answer)
        except OSError as error:
            self._set_state((error.strerror or str(error)).encode())
            return None
        self._processes[process.pid] = process
        self._selector.register(process.channel, selectors.EVENT_READ, process)
        return process

    def _accept(self) -> bool:
        """Start the next clip. Returns False if the control socket is closed."""
        try:
            _, descriptors, _, _ = socket.recv_fds(self._control, 1, 3)
        except ConnectionError:  # the service ended without reading every message
            return False
        if not descriptors:
            return False
        data, caller, next_answer = descriptors
        process = self._waiting or self._fork()
        if process:
            process.caller = socket.socket(fileno=caller)
            self._selector.register(process.caller, selectors.EVENT_READ, process)
            process.start(data)
        else:
            with contextlib.suppress(OSError), socket.socket(fileno=caller) as refused:
                refused.send(UNAVAILABLE)
        os.close(data)
        os.close(self._answer)
        self._answer = next_answer
        self._waiting = self._fork() if process else None
        return True

    def _hear(self, process: DecoderProcess, *, on_channel: bool) -> None:
        """Act on a message of a process, or of the service about the process's clip."""
        if self._processes.get(process.pid) is not process or process.pid in self._killed:
            return  # the process has just been reaped, and its id may be reused; or both events came at once
        if on_channel and process.hear_ready():
            self._set_state(OK)
        elif process.caller and (process.ready or not on_channel):
            self._kill(process, done=on_channel)
        else:  # it has ended before it had a clip or was ready, and will be reaped
            self._selector.unregister(process.channel)

    def _kill(self, process: DecoderProcess, *, done: bool) -> None:
        """Kill a clip's process, because it is done or because the service no longer waits for it."""
        os.kill(process.pid, signal.SIGKILL)
        self._unwatch(process)
        if not self._killed:
            self._selector.unregister(self._control)  # start no clip until the process has ended
        self._killed.add(process.pid)
        if done:
            process.answer(DONE)

    def _reap(self) -> None:
        """Tell the service of each process that has ended."""
        self._child_ended.recv(4096)
        while self._processes:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                break
            process = self._processes.pop(pid)
            if pid not in self._killed:
                self._unwatch(process)
            elif len(self._killed) == 1:
                self._selector.register(self._control, selectors.EVENT_READ)
            if process is self._waiting:
                self._waiting = None  # the next beat or clip has another one forked
            # Its end may be noticed before the message that it was ready.
            if pid in self._killed or process.ready or process.hear_ready():
                process.answer(b"%d %.3f" % (status, usage.ru_utime + usage.ru_stime))
            else:
                process.answer(UNAVAILABLE)
                self._set_state(b"decoder processes end while they start, with wait status %d" % status)
            self._killed.discard(pid)
            process.close()

    def _unwatch(self, process: DecoderProcess) -> None:
        for watched in (process.channel, process.caller):
            if watched and watched in self._selector.get_map():
                self._selector.unregister(watched)

    def _kill_all(self) -> None:
        """Kill every process and wait for its end."""
        for pid in self._processes:
            os.kill(pid, signal.SIGKILL)
        for pid in self._processes:
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
        _, answer, _, _ = socket.recv_fds(control, 1, 1)
        if not answer:  # the service has ended meanwhile
            return
        server = ForkServer(control, decoder, *answer)
        with contextlib.suppress(ConnectionError):  # likewise
            control.send(json.dumps(grants).encode())
        server.serve()


def _receive_clip(channel: socket.socket) -> int:
    """Wait for the clip's descriptor, then name the process "decoder", to distinguish it from one that still waits."""
    _, (clip,), _, _ = socket.recv_fds(channel, 1, 1)
    with contextlib.suppress(OSError):  # /proc may be read-only
        Path("/proc/self/comm").write_text("decoder", encoding="utf-8")
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
