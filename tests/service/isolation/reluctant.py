"""The fork server of `hostile.py`; its processes take a second to end once they are killed, as large ones might."""

import contextlib
import os
import signal
import threading

from service.isolation.forkserver import main
from tests.service.isolation.hostile import decode


def kill_slowly(pid: int, number: int) -> None:
    process = os.pidfd_open(pid)  # in a second the number may be another's
    threading.Timer(1, send, (process, number)).start()


def send(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        signal.pidfd_send_signal(process, number)
    os.close(process)


if __name__ == "__main__":
    os.kill = kill_slowly
    main(decode)
