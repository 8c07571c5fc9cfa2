"""Runs ``limelight`` with decoders that a clip can take over (see ``tests/service/isolation/hostile.py``)."""

import functools

from service.cli.app import app
from service.isolation import processes

hostile = functools.partial(processes.DecoderProcesses, program="tests.service.isolation.hostile")
setattr(processes, "DecoderProcesses", hostile)  # noqa: B010 - mypy rejects an assignment
app()
