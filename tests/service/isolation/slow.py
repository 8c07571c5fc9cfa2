"""The fork server of ``hostile.py`` on a machine that seems slow.

A killed process ends a second late, as one with much memory might. Each fork takes a while, so that the cancellation of
a clip and the next clip both arrive before the server handles either.
"""

import contextlib
import os
import signal
import threading
import time

from service.isolation.forkserver import main
from tests.service.isolation.hostile import decode

KILL_DELAY_S = 1.0
FORK_DELAY_S = 0.2


def kill_late(pid: int, number: int) -> None:
    process = os.pidfd_open(pid)  # the process id may belong to another process by then
    threading.Timer(KILL_DELAY_S, send, (process, number)).start()


def send(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended on its own
        signal.pidfd_send_signal(process, number)
    os.close(process)


def fork_slowly() -> int:
    pid = fork()
    if pid:
        time.sleep(FORK_DELAY_S)
    return pid


if __name__ == "__main__":
    fork = os.fork
    os.kill, os.fork = kill_late, fork_slowly
    main(decode)
