"""Runs ``limelight`` with predictions that never end. After SIGUSR1 its shutdown does not end either."""

import asyncio
import signal
import time
from typing import Any

from service.cli.app import app
from service.http import server
from service.pipeline import Pipeline


async def predict(*_: Any, **__: Any) -> Any:
    await asyncio.Event().wait()


def hang(*_: Any) -> None:
    setattr(server, "SHUTDOWN_MARGIN_S", 0.5)  # noqa: B010 - mypy rejects an assignment
    setattr(Pipeline, "close", lambda _: time.sleep(1000))  # noqa: B010


setattr(Pipeline, "predict", predict)  # noqa: B010
signal.signal(signal.SIGUSR1, hang)
app()
