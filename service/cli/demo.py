"""The server that ``limelight demo`` starts and stops."""

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from rich.console import Console

from service.cli.clips import Clip, clip_of, opened
from service.environment import python_command, without_relative_paths
from service.errors import CommandError
from service.isolation.clip_file import ClipFile
from service.isolation.sandbox import die_with_parent
from service.signals import closing_at_signals
from service.web import sample_clip

START_TIMEOUT_S = 300
STOP_TIMEOUT_S = 60


@contextlib.contextmanager
def opened_or_sample(path: Path | None) -> Iterator[Clip]:
    """Open a clip; without a path the sample.

    Raises:
        ClipProblem: It cannot be read.
    """
    if path:
        with opened(str(path)) as clip:
            yield clip
        return
    with ClipFile() as file:
        file.write(sample_clip())
        yield clip_of("a drawn person doing jumping jacks", file)


@contextlib.contextmanager
def running_server(bundle: Path) -> Iterator[str]:
    """Run ``limelight serve`` in a process of its own, on a free port of the loopback interface.

    However this process ends, also by SIGKILL, the server ends with it.

    Args:
        bundle: The bundle to serve.

    Yields:
        The server's address, once it is ready.

    Raises:
        CommandError: The server did not start.
    """
    port = _free_port()
    options = [f"--bundle={bundle.absolute()}", "--host=127.0.0.1", f"--port={port}"]
    environment = without_relative_paths(os.environ)
    environment = {name: value for name, value in environment.items() if name.upper() != "LIMELIGHT_UNIX_SOCKET"}
    for name in [name for name in environment if name.upper() == "LIMELIGHT_API_KEYS_FILE"]:
        environment[name] = str(Path(environment[name].strip()).absolute())  # the server runs in another folder
    with closing_at_signals(), tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [*python_command("service.cli"), "serve", *options],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd="/",  # not the current folder, in which anything may lie
            env=environment,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - no other thread runs Python
        )
        try:
            url = f"http://127.0.0.1:{port}"
            with Console(stderr=True, quiet=not sys.stderr.isatty()).status(f"Starting a server on port {port} …"):
                ready = _wait_until_ready(process, url)
            if not ready:
                stderr.seek(0)
                lines = stderr.read().strip().splitlines() or [f"it ended with exit code {process.returncode}"]
                reason = lines[-1].removeprefix("limelight: ").replace(str(bundle.absolute()), str(bundle))
                raise CommandError(f"the server did not start: {reason}")
            yield url
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    """Return True once the server is ready, and False if it exits or ``START_TIMEOUT_S`` passes before."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(trust_env=False) as client:
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if client.get(f"{url}/health/ready").is_success:
                    return True
            time.sleep(0.1)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt the server, which makes it stop without waiting for gateways; kill it if it does not stop in time."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
