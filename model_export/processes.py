"""Running a function in a process of its own, which gives back all its memory when it ends.

TensorFlow keeps the memory of each network that it trained until the process ends: 280 MB for each ``base`` head, also
after every reference is gone and the session was cleared.

The process is a new Python. Forking one that has imported TensorFlow would save the three seconds of the import, but
neither CUDA nor TensorFlow's threads survive a fork.
"""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Protocol, TypeVar

from model_export.errors import ProcessError

T = TypeVar("T")

Tell = Callable[..., None]
"""Receives progress: what ``work`` passes to it."""


class Run(Protocol):
    """A way to run a function: ``run_here`` or ``run_apart``."""

    def __call__(self, work: Callable[[Tell], T], tell: Tell) -> T:
        """Return ``work(tell)``."""


def run_here(work: Callable[[Tell], T], tell: Tell) -> T:
    """Run ``work(tell)`` in this process."""
    return work(tell)


def run_apart(work: Callable[[Tell], T], tell: Tell) -> T:
    """Run ``work(tell)`` in a new process, which ends with this one.

    Args:
        work: A function of a module, or a ``functools.partial`` of one. It, its arguments and its result are pickled.
        tell: Called in this process, with the arguments that ``work`` passes to its own ``tell``, as they come.

    Raises:
        ProcessError: The process ended without a result, for example because memory ran out.
        Exception: Whatever ``work`` raises, with its traceback as a note.
    """
    ours, theirs = multiprocessing.Pipe()
    with ours:
        with theirs:
            child = _start(theirs)
        try:
            with _end_explained(child):
                ours.send(work)
            while True:
                with _end_explained(child):
                    kind, content = ours.recv()
                if kind == "returned":
                    result: T = content
                    return result
                if kind == "raised":
                    raise content
                tell(*content)
        finally:
            child.kill()
            child.wait()


def _start(channel: Connection) -> subprocess.Popen[bytes]:
    # Ctrl-C goes to all processes of a terminal. The child inherits the blocked signal and leaves it blocked, since
    # this process ends it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(  # noqa: S603 - this module, on this interpreter
            [sys.executable, "-P", "-m", __name__, str(channel.fileno())],
            pass_fds=[channel.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _end_explained(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Explain why the child has closed its channel."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        code, what = child.wait(), "a process that trains or judges heads"
        if code < 0:
            raise ProcessError(
                f"{what} was killed by {signal.Signals(-code).name}, as happens when memory runs out; end other "
                "programs and run the command again to continue, or lower --batch-size"
            ) from error
        raise ProcessError(f"{what} ended with exit code {code}; run the command again to continue") from error


def prepare_tensorflow() -> None:
    """Set up TensorFlow, if it is imported; its messages about missing GPUs come now and not at the first operation."""
    if tensorflow := sys.modules.get("tensorflow"):
        tensorflow.config.list_physical_devices()
        # What is said to be float32 is not rounded to fewer bits, as TensorFlow does on NVIDIA's GPUs.
        tensorflow.config.experimental.enable_tensor_float_32_execution(False)
        # Hides warnings about retracing: TensorFlow mistakes the networks of different members for one.
        tensorflow.get_logger().setLevel("ERROR")


def _serve(channel: Connection) -> None:
    """Receive the work, do it, and send its result. Runs in the child."""
    try:
        work = channel.recv()
        prepare_tensorflow()
        threading.Thread(target=_end_with_parent, args=(channel,), daemon=True).start()
        channel.send(("returned", work(lambda *told: channel.send(("told", told)))))
    except Exception as error:
        error.add_note(traceback.format_exc())
        with suppress(ConnectionError):  # the parent has ended
            channel.send(("raised", _portable(error)))


def _end_with_parent(channel: Connection) -> None:
    channel.poll(None)  # nothing more is ever sent: the parent has closed its end
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """Return the error, or its text if it cannot be pickled and unpickled."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - what this process has just pickled
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
