import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import REPOSITORY
from tests.processes import until

TESTS = REPOSITORY / "tests" / "docker"
# Tag of the images and part of the containers' names, so that two checkouts can be tested at the same time.
NAME = os.environ.get("DOCKER_TEST_NAME") or "test"


def docker(*arguments: str, given: str | None = None) -> str:
    """Run a Docker command, with ``given`` as its input, and return its output. Fails the test if it fails."""
    done = subprocess.run(["docker", *arguments], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr[-2000:]}"
    return done.stdout


@dataclass(frozen=True)
class Stack:
    """The containers that ``docker compose up`` started from a clean copy of the project."""

    folder: Path
    files: tuple[str, ...]
    url: str
    environment: dict[str, str]

    def compose(self, *arguments: str) -> str:
        files = [word for file in self.files for word in ("-f", file)]
        command = ["docker", "compose", *files, *arguments]
        environment = os.environ | self.environment
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    def containers(self, service: str) -> list[str]:
        """Return the ids of the service's running containers."""
        return self.compose("ps", "-q", service).split()

    def client(self) -> httpx.Client:
        """Return a client of the gateway, the only service that can be reached from outside."""
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False)

    def ask_prometheus(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an instant query, each with ``metric`` and ``value``."""
        address = "http://localhost:9090"
        output = self.compose(
            "exec", "-T", "prometheus", "promtool", "query", "instant", "--format=json", address, expression
        )
        samples: list[dict[str, Any]] = json.loads(output)
        return samples

    def gateway_log(self) -> list[dict[str, Any]]:
        """Return the lines of the gateway's access log."""
        (gateway,) = self.containers("gateway")
        lines = docker("logs", gateway).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def metrics_of(container: str) -> str:
    """Return a replica's metrics, as Prometheus scrapes them."""
    program = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/metrics').read().decode())"
    return docker("exec", container, "python", "-c", program)


def address_of(container: str) -> str:
    """Return the address at which the gateway reaches a replica."""
    networks = json.loads(docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", container))
    (network,) = networks.values()
    return f"{network['IPAddress']}:8000"


@contextmanager
def running(
    folder: Path,
    project: str,
    *,
    files: Sequence[str] = (),
    arguments: Sequence[str] = (),
    prepare: Callable[[Stack], object] = lambda stack: None,
    **environment: str,
) -> Iterator[Stack]:
    """Run ``docker compose up`` for the block, after ``prepare``, then remove the containers and their volumes."""
    copy_project(folder)
    port = free_port()
    stack = Stack(
        folder,
        ("docker-compose.yml", str(TESTS / "compose.test.yml"), *(str(TESTS / file) for file in files)),
        f"http://127.0.0.1:{port}",
        {"COMPOSE_PROJECT_NAME": f"{project}-{NAME}", "GATEWAY_PORT": str(port), "LIMELIGHT_TAG": NAME, **environment},
    )
    stack.compose("down", "--volumes", "--timeout", "1")  # what a run that was killed has left
    try:
        prepare(stack)
        stack.compose("up", "--detach", "--build", "--quiet-pull", *arguments)
        wait_until_healthy(stack)
        yield stack
    finally:
        stack.compose("down", "--volumes", "--timeout", "1")


def wait_until_healthy(stack: Stack) -> None:
    """Wait until the gateway has found a replica that is ready. ``up`` does not wait for them."""

    def ready() -> bool:
        with contextlib.suppress(httpx.TransportError), stack.client() as client:
            return client.get("/health/ready").is_success
        return False

    until(ready, patience_s=300)


def copy_project(folder: Path) -> None:
    """Copy the files of a fresh clone, with uncommitted changes."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-cf", folder / "project.tar", "--null", "-T", "-"], cwd=REPOSITORY, input=names, check=True)
    subprocess.run(["tar", "-xf", "project.tar"], cwd=folder, check=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
