"""The fork server of ``hostile.py``, to which the kernel seems to refuse processes from SIGUSR1 to SIGUSR2."""

import errno
import os
import signal

from service.isolation.forkserver import main
from tests.service.isolation.hostile import decode

refused: set[int] = set()


def fork_or_fail() -> int:
    if refused:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()


if __name__ == "__main__":
    fork = os.fork
    os.fork = fork_or_fail
    signal.signal(signal.SIGUSR1, lambda number, _: refused.add(number))
    signal.signal(signal.SIGUSR2, lambda *_: refused.clear())
    main(decode)
