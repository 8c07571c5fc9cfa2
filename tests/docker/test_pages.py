"""Follows the pages that tell how to deploy the service, command by command, under load.

Every command of README.md's section "Deployment" and of docs/operations.md is run in the order of the pages, in a fresh
clone. A new command is run without a change here; those that cannot be are listed in ``NOT_RUN``.
"""

import contextlib
import http.server
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.conftest import REPOSITORY
from tests.docker.stack import NAME, TESTS, copy_project, docker, free_port
from tests.processes import until

PROJECT = f"limelight-pages-{NAME}"
RATE = 4  # predictions per second
OUTAGE_S = 20  # longest outage, on a busy machine, that "about a second" may be
# The first line of each block that is not run, and why.
NOT_RUN = {
    "echo 'COMPOSE_FILE=${COMPOSE_FILE:-docker-compose.yml}:docker-compose.gpu.yml' >>.env": "needs a GPU",
    "echo 'COMPOSE_FILE=${COMPOSE_FILE:-docker-compose.yml}:docker-compose.tracing.yml' >>.env": "needs Jaeger's image",
    "limelight serve --unix-socket /run/limelight/http.sock": "runs without Docker",
}
# Code in the text that is no command to follow.
MENTIONED = {"docker compose up", "docker run", "docker stats", "deploy/rolling-update.sh limelight limelight-gpu1"}
# Commands in the text whose exit code may be 1: nothing is found.
MAY_FIND_NOTHING = {"""docker compose logs limelight | grep '"level": "error"'"""}


@dataclass(frozen=True)
class Command:
    """A block of commands, or a command in the text, as a page prints it."""

    printed: str

    @property
    def first_line(self) -> str:
        return self.printed.splitlines()[0]

    @property
    def interrupts(self) -> bool:
        """Whether the page says that requests fail meanwhile."""
        return "# interrupts" in self.printed


def commands() -> list[Command]:
    """Return the commands of the pages in their order."""
    deployment = (REPOSITORY / "README.md").read_text().partition("\n## Deployment\n")[2].partition("\n## ")[0]
    pages = deployment + (REPOSITORY / "docs/operations.md").read_text()
    found = re.findall(r"^```sh\n(.*?)^```|(?<!`)`((?:docker|deploy/)[^`]* [^`]*)`", pages, re.MULTILINE | re.DOTALL)
    blocks = "".join(block for block, _ in found)
    return [
        Command(block or " ".join(inline.split()))
        for block, inline in found
        if block or (inline not in blocks and inline not in MENTIONED)
    ]


@dataclass
class Client:
    """Sends ``RATE`` predictions per second to the gateway, as long as the pages are followed."""

    folder: Path
    port: int
    clip: bytes
    outcomes: list[tuple[float, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{'https' if 'docker-compose.tls.yml' in self._file('.env') else 'http'}://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """The key that all replicas know: while keys are changed, the old one is the last."""
        keys = re.findall(r"^LIMELIGHT_API_KEYS=(?:.*,)?(.+)$", self._file("limelight.env"), re.MULTILINE)
        return {"X-API-Key": keys[-1]} if keys else {}

    def _file(self, name: str) -> str:
        file = self.folder / name
        return file.read_text() if file.exists() else ""

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(self.url + path, headers=headers, verify=False, trust_env=False, timeout=60)

    def predict(self) -> None:
        """Send one prediction on a connection of its own."""
        sent = time.monotonic()
        try:
            answer = httpx.post(
                f"{self.url}/predict?attention=false",
                content=self.clip,
                headers=self.headers,
                verify=False,
                trust_env=False,
                timeout=60,
            )
            outcome = "200" if answer.is_success else f"{answer.status_code} {answer.text}"
        except httpx.HTTPError as error:
            outcome = repr(error)
        self.outcomes.append((sent, outcome))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        over = threading.Event()

        def send(crowd: ThreadPoolExecutor) -> None:
            while not over.wait(1 / RATE):
                crowd.submit(self.predict)

        with ThreadPoolExecutor(20) as crowd, ThreadPoolExecutor(1) as clock:
            clock.submit(send, crowd)
            try:
                yield
            finally:
                over.set()

    def failures(self, since: float) -> list[tuple[float, str]]:
        return [(sent - since, outcome) for sent, outcome in self.outcomes if sent >= since and outcome != "200"]

    def wait_for_answers(self) -> None:
        """Wait until ten predictions were answered that are sent from now on."""
        now = time.monotonic()
        until(lambda: sum(sent > now and outcome == "200" for sent, outcome in self.outcomes) >= 10, patience_s=120)


@dataclass
class Walk:
    """A fresh clone in which the commands are run."""

    folder: Path
    client: Client
    substitutions: dict[str, str]

    def run(self, command: Command) -> None:
        script = command.printed
        for printed, replacement in self.substitutions.items():
            script = script.replace(printed, replacement)
        code = 1 if command.printed in MAY_FIND_NOTHING else 0
        done = subprocess.run(
            ["sh", "-ec", script], cwd=self.folder, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode <= code, f"{script}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"

    def containers(self, service: str) -> list[dict[str, object]]:
        ids = docker("ps", "-q", "-f", f"label=com.docker.compose.project={PROJECT}", "-f", f"name=-{service}-").split()
        found: list[dict[str, object]] = json.loads(docker("inspect", *ids)) if ids else []
        return found

    def replicas_with(self, part: str) -> int:
        """Return how many replicas have ``part`` in their configuration."""
        return sum(part in json.dumps(replica["Config"]) for replica in self.containers("limelight"))


def environment() -> dict[str, str]:
    """Return the environment of somebody who has set no variables of Compose or the service."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("LIMELIGHT_", "COMPOSE_"))}


@pytest.fixture
def walk(engine: None, tiny_bundle: Path, clip: bytes, tmp_path: Path, webhook: "Webhook") -> Iterator[Walk]:
    tiny_bundle.parent.chmod(0o755)
    upstream, folder, port = tmp_path / "upstream", tmp_path / "clone", free_port()
    upstream.mkdir()
    copy_project(upstream)
    git = ["git", "-c", "user.name=Test", "-c", "user.email=test@example.org"]
    (upstream / "project.tar").unlink()
    for arguments in (["init", "-q"], ["add", "--all"], ["commit", "-q", "-m", "Release"]):
        subprocess.run([*git, *arguments], cwd=upstream, check=True)
    subprocess.run(["git", "clone", "-q", upstream, folder], check=True)
    # The next release, which `git pull` finds.
    nginx = upstream / "deploy/gateway/nginx.conf"
    nginx.write_text("# next release\n" + nginx.read_text())
    subprocess.run([*git, "commit", "-q", "-a", "-m", "Next release"], cwd=upstream, check=True)

    (folder / "deploy/prometheus/rules/test.yml").write_text(
        "groups: [{name: test, rules: [{alert: Test, expr: vector(1), labels: {severity: info}}]}]"
    )
    overlays = ":".join(["docker-compose.yml", *(f"tests/docker/compose.{name}.yml" for name in ("test", "pages"))])
    (folder / ".env").write_text(
        f"COMPOSE_PROJECT_NAME={PROJECT}\nCOMPOSE_FILE={overlays}\nGATEWAY_PORT={port}\nLIMELIGHT_TAG={NAME}\n"
        f"TINY_BUNDLE={tiny_bundle}\n"
    )
    certificate = tmp_path / "tls"
    certificate.mkdir()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        + ["-keyout", certificate / "tls.key", "-out", certificate / "tls.crt"],
        check=True,
        capture_output=True,
    )
    for made in (tmp_path, certificate, certificate / "tls.key"):
        made.chmod(0o755)
    substitutions = {
        "limelight-alone": f"{PROJECT}-alone",
        "127.0.0.1:8001": f"127.0.0.1:{free_port()}",
        "limelight_bundles:/bundles:ro limelight\n": f"{PROJECT}_bundles:/bundles:ro limelight:{NAME}\n",
        "LIMELIGHT_TAG=latest": f"LIMELIGHT_TAG={NAME}",
        "/etc/limelight/tls": str(certificate),
        "https://alerts.example/limelight": webhook.url,
    }
    pages = "".join(command.printed for command in commands())
    assert [printed for printed in substitutions if printed not in pages] == []
    try:
        yield Walk(folder, Client(folder, port, clip), substitutions)
    finally:
        subprocess.run(["docker", "compose", "down", "--volumes", "--timeout", "1"], cwd=folder, env=environment())
        revisions = subprocess.run(["git", "log", "--all", "--format=%h"], cwd=folder, capture_output=True, text=True)
        for revision in revisions.stdout.split():
            subprocess.run(["docker", "rmi", f"limelight:{revision}"], capture_output=True, check=False)


@dataclass
class Webhook:
    """A receiver of alerts outside of the service's networks."""

    url: str
    received: list[str] = field(default_factory=list)


@pytest.fixture
def webhook(engine: None) -> Iterator[Webhook]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.received.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    host = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}").strip()
    with http.server.ThreadingHTTPServer(("0.0.0.0", 0), Handler) as server:
        hook = Webhook(f"http://{host}:{server.server_port}/limelight")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hook
        server.shutdown()


def test_every_command_of_the_pages_works_and_loses_no_request(walk: Walk, webhook: Webhook) -> None:
    client = walk.client

    def requires_a_key() -> bool:
        return client.get("/model").status_code == 401

    def grafana_knows_its_address_and_the_client() -> bool:
        answer = client.get("/grafana/", **{"X-Real-IP": "192.0.2.1"}).json()
        settings, headers = answer["settings"], answer["headers"]
        return (
            settings["GF_SERVER_ROOT_URL"] == f"https://localhost:{client.port}/grafana/"
            and settings["GF_SECURITY_COOKIE_SECURE"] == "true"
            and headers["X-Real-IP"] == headers["X-Forwarded-For"] != "192.0.2.1"
        )

    # What must become true after the block that contains the text.
    checks: dict[str, Callable[[], object]] = {
        "LIMELIGHT_API_KEYS=$(": requires_a_key,
        "LIMELIGHT_REPLICAS=3": lambda: len(walk.containers("limelight")) == 3,
        "docker-compose.tls.yml": lambda: client.get("/health/ready").is_success,
        "docker compose up --detach grafana": grafana_knows_its_address_and_the_client,
        "LIMELIGHT_MAX_QUEUE=32": lambda: walk.replicas_with('"LIMELIGHT_MAX_QUEUE=32"') == 3,
        "git pull": lambda: walk.replicas_with(f'"limelight:{NAME}"') == 0,
        "git switch --detach ORIG_HEAD": lambda: walk.replicas_with(f'"limelight:{NAME}"') == 3,
        "docker-compose.alerts.yml": lambda: any('"alertname":"Test"' in body for body in webhook.received),
    }
    to_run = commands()
    assert NOT_RUN.keys() <= {command.first_line for command in to_run}
    with contextlib.ExitStack() as stack:
        for command in to_run:
            if command.first_line in NOT_RUN:
                continue
            print(f"{time.strftime('%X')} {command.first_line}")
            start, gateway = time.monotonic(), [one["Id"] for one in walk.containers("gateway")]
            walk.run(command)
            if not client.outcomes:  # the first start
                until(lambda: client.get("/health/ready").is_success, patience_s=120)
                stack.enter_context(client.running())
                start, gateway = time.monotonic(), [one["Id"] for one in walk.containers("gateway")]
            for text in [text for text in checks if text in command.printed]:
                until(checks.pop(text), patience_s=120)
            client.wait_for_answers()

            failures = client.failures(start)
            if command.interrupts:
                assert all(since < OUTAGE_S for since, _ in failures), failures
            else:
                assert failures == [], command.printed
                assert [one["Id"] for one in walk.containers("gateway")] == gateway, command.printed

    assert not checks
