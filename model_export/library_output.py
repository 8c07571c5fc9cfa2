"""What TensorFlow, Keras, HDF5 and other libraries print on standard error: kept back, and shown if something fails.

Their C++ code writes to file descriptor 2 directly, and so do the processes that inherit it. The descriptor is
therefore a pipe to a process that keeps the end of what comes. That process outlives this one, so that it can show the
last words before a crash or a kill. This module is also its program, and imports the standard library alone.
"""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

KEPT_BYTES = 64 * 1024
# What the process is told: to forget what has come until now, to print it, or that all went well. What it answers.
FORGET, SHOW, WELL, DONE = b"f", b"s", b"w", b"d"


class LibraryOutput:
    """Standard error of the libraries. This one leaves it as it is."""

    def forget(self) -> None:
        """Forget what was printed until now."""

    def end(self, *, show: bool) -> None:
        """Give back standard error, after showing what was kept if ``show``."""


class KeptOutput(LibraryOutput):
    """Keeps back what is printed on file descriptor 2 until ``end``, or until this process dies."""

    def __init__(self) -> None:
        self._stderr = os.dup(2)
        output, into = os.pipe()
        told, self._channel = socket.socketpair()
        try:
            self._keeper = subprocess.Popen(  # noqa: S603 - this module, on this interpreter
                [sys.executable, "-IS", __file__, str(told.fileno())],
                stdin=output,
                stdout=self._stderr,
                pass_fds=[told.fileno()],
                start_new_session=True,  # Ctrl-C is not meant for it
            )
            os.dup2(into, 2)
        finally:
            told.close()
            for descriptor in (output, into):
                os.close(descriptor)

    def forget(self) -> None:
        """Forget what was printed until now."""
        _flush()
        self._tell(FORGET)  # and wait, so that nothing that is printed later is forgotten

    def end(self, *, show: bool) -> None:
        """Give back standard error, after showing what was kept if ``show``."""
        _flush()
        os.dup2(self._stderr, 2)
        os.close(self._stderr)
        self._tell(SHOW if show else WELL)
        self._channel.close()
        self._keeper.wait()

    def _tell(self, what: bytes) -> None:
        """Tell the process something, and wait until it has done it."""
        with suppress(ConnectionError):  # somebody has killed it
            self._channel.sendall(what)
            self._channel.recv(1)


@contextmanager
def kept_back(*, verbose: bool) -> Iterator[LibraryOutput]:
    """Keep back what libraries print on standard error while the block runs, and show it if the block fails.

    That somebody interrupts the block, or reads its output no longer, is no failure.

    Args:
        verbose: Show it as it comes.
    """
    output = LibraryOutput() if verbose else KeptOutput()
    failed = False
    try:
        yield output
    except BrokenPipeError:
        raise
    except Exception:
        failed = True
        raise
    finally:
        output.end(show=failed)


def _flush() -> None:
    with suppress(OSError, ValueError, AttributeError):  # it may be closed, or none
        sys.stderr.flush()


def _keep(told: int) -> None:
    """Keep what comes on standard input until ``told`` says more, and print it unless all went well."""
    kept, cut = bytearray(), False
    while True:
        ready, _, _ = select.select([0, told], [], [])
        while select.select([0], [], [], 0)[0] and (part := os.read(0, KEPT_BYTES)):
            kept += part
            cut = cut or len(kept) > KEPT_BYTES
            del kept[:-KEPT_BYTES]
        if told in ready:
            what = b""
            with suppress(ConnectionError):  # the process that prints has died
                what = os.read(told, 1)
            if what == WELL:
                return
            if what != FORGET:
                break
            kept, cut = bytearray(), False
            with suppress(ConnectionError):
                os.write(told, DONE)
    text = b"[...] " * cut + kept + b"\n" * (bool(kept) and not kept.endswith(b"\n"))
    with suppress(OSError):
        while text:
            text = text[os.write(1, text) :]


if __name__ == "__main__":
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # which service managers send to all processes
        signal.signal(number, signal.SIG_IGN)
    _keep(int(sys.argv[1]))
