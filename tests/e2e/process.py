import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import until

PATIENCE_S = 150


@dataclass
class Server:
    """A running ``limelight serve`` process."""

    process: subprocess.Popen[str]
    log: Path

    @property
    def addresses(self) -> list[str]:
        """Where the server listens, as its log says."""
        return [str(line["address"]) for line in self.lines() if line["message"] == "listening"]

    @cached_property
    def port(self) -> int:
        return int(self.addresses[0].rpartition(":")[2])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lines(self) -> list[dict[str, object]]:
        """Return the lines of its log. Raises ``ValueError`` if one is not JSON."""
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def access_line(self, request_id: str) -> dict[str, object]:
        """Wait for the access line of a request, which is written after its answer has been sent."""
        until(lambda: f'"{request_id}"' in self.log.read_text(encoding="utf-8"))
        (line,) = (line for line in self.lines() if line.get("request_id") == request_id)
        return line

    def metric(self, name: str, **labels: str) -> float:
        """Return a metric, named without ``limelight_``, summed over its series with these labels."""
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics", trust_env=False).text)
        samples = [sample for family in families for sample in family.samples if sample.name == f"limelight_{name}"]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def refuses_connections(self) -> bool:
        """Return whether the server has stopped listening."""
        try:
            socket.create_connection(("127.0.0.1", self.port), PATIENCE_S).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:  # the listener closed while it held the connection
            pass
        return False


@contextmanager
def running(
    bundle: Path, log: Path, settings: Mapping[str, str], program: str = "service.cli", **options: Any
) -> Iterator[Server]:
    """Run a server until the block ends, which begins when the server is ready. Arguments are those of ``starting``."""
    with starting(bundle, log, settings, program, **options) as server:
        _wait_for("ready", server)
        yield server


@contextmanager
def starting(
    bundle: Path,
    log: Path,
    settings: Mapping[str, str],
    program: str = "service.cli",
    *,
    wrapper: Sequence[str] = (),
    variables: Mapping[str, str] = MappingProxyType({}),
    folder: Path | None = None,
    command: Sequence[str] = (),
) -> Iterator[Server]:
    """Run a server until the block ends, which begins when the server listens and still loads its bundle.

    Args:
        bundle: The bundle to serve.
        log: File for the server's log.
        settings: Settings by name, without the prefix ``LIMELIGHT_``.
        program: The module to run.
        wrapper: A command that runs the command after it.
        variables: Other environment variables.
        folder: Where to run it (default: the current folder).
        command: The program to run instead of a module.
    """
    command = command or [sys.executable, "-m", program]
    command = [*wrapper, *command, "serve", "--bundle", str(bundle), "--port", "0"]
    environment = os.environ | {f"LIMELIGHT_{name}": value for name, value in settings.items()} | dict(variables)
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder
        )
    try:
        server = Server(process, log)
        _wait_for("listening", server)
        yield server
    finally:
        process.kill()
        process.wait()


def _wait_for(message: str, server: Server) -> None:
    """Wait until the server logs a message."""
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up and server.process.poll() is None:
        if any(line["message"] == message for line in server.lines()):
            return
        time.sleep(0.02)
    pytest.fail(f"the server did not log {message!r}:\n{server.log.read_text(encoding='utf-8')}")
