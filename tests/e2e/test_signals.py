"""Signals that end a command: nothing of it is left, and the parent process learns which signal it was."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.process import PATIENCE_S
from tests.processes import descendants, is_alive, until
from tests.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.slow

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGKILL)
QUICK_S = 5  # in which the processes of a command end on a busy machine
HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"


@pytest.mark.ci
def test_nothing_is_left_when_a_signal_ends_demo_while_its_server_starts(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    os.truncate(bundle / "model.int8.onnx", 2**42)  # it takes no space, but longer to read than this test

    screens = end_by_each_signal(["demo", "--bundle", str(bundle)], b"Starting a server")

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        assert screens[number].count(HIDE_CURSOR) == screens[number].count(SHOW_CURSOR) == 1


def test_nothing_is_left_when_a_signal_ends_predict_while_it_decodes(
    tiny_bundle: Path, tmp_path: Path, clip: bytes
) -> None:
    (tmp_path / "clip.mp4").write_bytes(clip)
    end_by_each_signal(["predict", "--bundle", str(tiny_bundle), *[str(tmp_path / "clip.mp4")] * 200], b"frames")


def end_by_each_signal(arguments: list[str], text: bytes) -> dict[signal.Signals, bytes]:
    """Run a command once for each signal, and end it by the signal when it has shown a text twice at its terminal.

    Returns:
        What each has shown.
    """
    with ThreadPoolExecutor(len(SIGNALS)) as threads:
        return dict(zip(SIGNALS, threads.map(lambda number: end(arguments, number, text), SIGNALS), strict=True))


def end(arguments: list[str], number: signal.Signals, text: bytes) -> bytes:
    command = [sys.executable, "-m", "service.cli", *arguments]
    with contextlib.closing(Terminal()) as terminal:
        process = subprocess.Popen(
            command,
            stdout=terminal.line,
            stderr=terminal.line,
            env=os.environ | {"TERM": "xterm"},
            start_new_session=True,
        )
        try:
            until(lambda: terminal.read().count(text) >= 2)
            children = [*itertools.chain(*descendants(process.pid))]
            process.send_signal(number)

            assert process.wait(PATIENCE_S) == -number
            assert children
            until(lambda: not any(map(is_alive, children)), QUICK_S)
            return terminal.read()
        finally:
            process.kill()
            process.wait()


class Terminal:
    """A terminal at which a program runs, whose end of the line is ``line``."""

    def __init__(self) -> None:
        self._screen, self.line = os.openpty()
        os.set_blocking(self._screen, False)
        self._shown = b""

    def read(self) -> bytes:
        """Return what has been shown so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._shown += os.read(self._screen, 65536)
        return self._shown

    def close(self) -> None:
        os.close(self._screen)
        os.close(self.line)
