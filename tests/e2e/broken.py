"""Runs ``limelight`` with a network that fails: once after SIGUSR2, and for ever after SIGUSR1."""

import signal
from typing import Any

from service.cli.app import app
from service.model import engine

signals: list[int] = []
run = engine._Bucket.run


def fail(bucket: Any, clips: int) -> Any:
    if signals:
        if signals[-1] == signal.SIGUSR2:
            signals.clear()
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")
    return run(bucket, clips)


for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, _: signals.append(number))
setattr(engine._Bucket, "run", fail)  # noqa: B010 - mypy rejects an assignment
app()
