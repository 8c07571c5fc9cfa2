import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.processes import until

PATIENCE_S = 150


@dataclass
class Server:
    """A running ``limelight serve`` process."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lines(self) -> list[dict[str, object]]:
        """Return the lines of its log. Raises ``ValueError`` if one is not JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def access_line(self, request_id: str) -> dict[str, object]:
        """Wait for the access line of a request, which is written after its answer has been sent."""
        until(lambda: f'"{request_id}"' in self.log.read_text())
        (line,) = (line for line in self.lines() if line.get("request_id") == request_id)
        return line


@contextmanager
def running(
    bundle: Path,
    log: Path,
    settings: dict[str, str],
    program: str = "service.cli",
    *,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Server]:
    """Run a server until the block ends.

    Args:
        bundle: The bundle to serve.
        log: File for the server's log.
        settings: Settings by name, without the prefix ``LIMELIGHT_``.
        program: The module to run.
        variables: Other environment variables.
    """
    command = [sys.executable, "-m", program, "serve", "--bundle", str(bundle), "--port", "0"]
    environment = os.environ | {f"LIMELIGHT_{name}": value for name, value in settings.items()} | dict(variables)
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        yield _when_ready(process, log)
    finally:
        process.kill()
        process.wait()


def _when_ready(process: subprocess.Popen[str], log: Path) -> Server:
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up and process.poll() is None:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        if any(line["message"] == "ready" for line in lines):
            address = next(line["address"] for line in lines if line["message"] == "listening")
            return Server(process, int(address.rpartition(":")[2]), log)
        time.sleep(0.02)
    pytest.fail(f"the server did not become ready:\n{log.read_text()}")
