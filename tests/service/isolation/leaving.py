"""A fork server that closes its control socket at SIGUSR1, but takes a while to end, as one with much memory does."""

import signal
import socket
import sys
import time

from service.isolation.forkserver import main

LEAVING_S = 2


def leave(*_: object) -> None:
    with socket.socket(fileno=int(sys.argv[1])) as control:
        control.shutdown(socket.SHUT_RDWR)
    time.sleep(LEAVING_S)
    sys.exit()


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, leave)
    main()
