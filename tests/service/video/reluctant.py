"""The fork server of `hostile.py`; its processes take a second to end once they are killed, as large ones might."""

import contextlib
import os
import threading

from service.video.forkserver import main
from tests.service.video.hostile import decode

at_once = os.kill


def kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        at_once(pid, number)


if __name__ == "__main__":
    os.kill = lambda pid, number: threading.Timer(1, kill, (pid, number)).start()
    main(decode)
