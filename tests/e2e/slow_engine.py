"""Runs ``limelight`` with an engine that takes half a second for a batch."""

import time
from typing import Any

from service.cli.app import app
from service.model.engine import Engine

run = Engine.run


def run_slowly(engine: Engine, *arguments: Any) -> Any:
    time.sleep(0.5)
    return run(engine, *arguments)


setattr(Engine, "run", run_slowly)  # noqa: B010 - mypy rejects an assignment
app()
