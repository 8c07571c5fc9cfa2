"""Ending by a signal as other programs do: what is open is closed, and the parent process learns of the signal."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


class _Signalled(BaseException):
    """A signal arrived that ends the process."""


@contextlib.contextmanager
def closing_at_signals() -> Iterator[None]:
    """If SIGTERM or SIGHUP arrives, leave the block, which closes what it has open, and end the process by the signal.

    A second signal ends the process at once. SIGHUP stays ignored if it is, as under ``nohup``. Python runs handlers
    between two of its instructions only: the block should not compute for long in a library.
    """
    handled = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    received: list[int] = []

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        restore()
        received.append(number)
        raise _Signalled

    def restore() -> None:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)

    for number in handled:
        signal.signal(number, leave)
    try:
        yield
    finally:  # closing may have raised another error, as when the terminal is gone
        restore()
        if received:
            end_by(received[0])


def end_by(number: int) -> NoReturn:
    """End this process by a signal. Shells report 128 and its number, and stop a loop at SIGINT."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # the first process of a container is not ended by signals
