"""Runs ``limelight`` with a reader of tensors that does not end before SIGUSR1."""

import signal
import threading
from typing import Any

from service.cli.app import app
from service.http.protocol import routes, tensors

released = threading.Event()
read = tensors.read_request


def read_late(*arguments: Any) -> Any:
    released.wait()
    return read(*arguments)


signal.signal(signal.SIGUSR1, lambda *_: released.set())
setattr(routes, "read_request", read_late)  # noqa: B010 - mypy rejects an assignment
app()
