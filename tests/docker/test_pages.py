"""Follows the pages that tell how to deploy the service, command by command, under load.

Every command of README.md's section "Deployment" and of docs/operations.md is run in the order of the pages, in a fresh
clone. A new command is run without a change here; those that cannot be are listed in ``NOT_RUN``.
"""

import contextlib
import http.server
import json
import logging
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from model_export.rendering.figure import render_clip
from tests.conftest import REPOSITORY
from tests.docker.stack import NAME, copy_project, docker, free_port
from tests.processes import until

LOG = logging.getLogger(__name__)
PROJECT = f"limelight-pages-{NAME}"
RATE = 4  # predictions per second
OUTAGE_S = 20  # longest outage, on a busy machine, that "about a second" may be
# Rules with an alert that always fires.
ALERT = "groups: [{name: test, rules: [{alert: Test, expr: vector(1)}]}]"
# The first line of each block that is not run, and why.
NOT_RUN = {
    "echo 'COMPOSE_FILE=${COMPOSE_FILE:-docker-compose.yml}:docker-compose.gpu.yml' >>.env": "needs a GPU",
    "echo 'COMPOSE_FILE=${COMPOSE_FILE:-docker-compose.yml}:docker-compose.tracing.yml' >>.env": "needs Jaeger's image",
    "nft -f - <<'END'": "changes this machine",
    "limelight serve --unix-socket /run/limelight/http.sock": "runs without Docker",
}
# What a block may begin with. Other programs may change this machine.
PROGRAMS = {"cat", "chmod", "deploy/rolling-update.sh", "docker", "echo", "git", "mkdir", "openssl", "sed", "touch"}
# Code in the text that is no command to follow.
MENTIONED = {"docker compose up", "docker restart", "docker stats", "deploy/rolling-update.sh limelight limelight-gpu1"}
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
    """Return the commands of the pages in their order; those in the text only if no block has them, and once."""
    deployment = (
        (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("\n## Deployment\n")[2].partition("\n## ")[0]
    )
    pages = deployment + (REPOSITORY / "docs/operations.md").read_text(encoding="utf-8")
    found = re.findall(r"^```sh\n(.*?)^```|(?<!`)`((?:docker|deploy/)[^`]* [^`]*)`", pages, re.MULTILINE | re.DOTALL)
    known = [*MENTIONED, *(block for block, _ in found)]
    result = []
    for block, inline in found:
        command = block or " ".join(inline.split())
        if block or not any(command in one for one in known):
            result.append(Command(command))
            known.append(command)
    return result


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
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(self.url + path, headers=headers, verify=False, trust_env=False, timeout=60)

    def predict(self) -> None:
        """Send one prediction, on connections of its own, and again as long as 429 asks for it: the machine is busy."""
        sent, outcome = time.monotonic(), "429"
        while outcome.startswith("429") and time.monotonic() < sent + 60:
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
                time.sleep(int(answer.headers.get("Retry-After", 0)) if answer.status_code == 429 else 0)
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
                crowd.shutdown(cancel_futures=True)  # on a busy machine, predictions wait here

    def failures(self, since: float = 0) -> list[tuple[float, str]]:
        return [(sent, outcome) for sent, outcome in self.outcomes if sent >= since and outcome != "200"]

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
        assert command.printed.split()[0] in PROGRAMS, command.printed
        script = command.printed
        for printed, replacement in self.substitutions.items():
            script = script.replace(printed, replacement)
        code = 1 if command.printed in MAY_FIND_NOTHING else 0
        done = subprocess.run(
            ["sh", "-ec", script], cwd=self.folder, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode <= code, f"{script}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"

    def containers(self, service: str) -> list[dict[str, object]]:
        labels = (f"com.docker.compose.project={PROJECT}", f"com.docker.compose.service={service}")
        ids = docker("ps", "-q", *(word for label in labels for word in ("--filter", f"label={label}"))).split()
        found: list[dict[str, object]] = json.loads(docker("inspect", *ids)) if ids else []
        return found

    def ids(self, service: str) -> set[object]:
        return {container["Id"] for container in self.containers(service)}

    def replicas_with(self, part: str) -> int:
        """Return how many replicas have ``part`` in their configuration."""
        return sum(part in json.dumps(replica["Config"]) for replica in self.containers("limelight"))


def environment() -> dict[str, str]:
    """Return the environment of somebody who has set no variables of Compose or the service."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("LIMELIGHT_", "COMPOSE_"))}


@pytest.fixture
def walk(engine: None, tiny_bundle: Path, tmp_path: Path, webhook: "Webhook") -> Iterator[Walk]:
    tiny_bundle.parent.chmod(0o755)  # containers run as other users
    tmp_path.chmod(0o755)
    folder, port = clone(tmp_path), free_port()
    (folder / "deploy/prometheus/rules/test.yml").write_text(ALERT, encoding="utf-8")
    receivers = folder / "deploy/alertmanager.example.yml"
    receivers.write_text(
        receivers.read_text(encoding="utf-8").replace("https://alerts.example/limelight", webhook.url), encoding="utf-8"
    )
    for made in ("bundle", "runs/head", "videos"):  # stand in for the reader's bundle, head and clips
        shutil.copytree(tiny_bundle, folder / made)
    overlays = ":".join(["docker-compose.yml", *(f"tests/docker/compose.{name}.yml" for name in ("test", "pages"))])
    (folder / ".env").write_text(
        f"COMPOSE_PROJECT_NAME={PROJECT}\nCOMPOSE_FILE={overlays}\nGATEWAY_PORT={port}\nLIMELIGHT_TAG={NAME}\n"
        f"TINY_BUNDLE={tiny_bundle}\n",
        encoding="utf-8",
    )
    substitutions = {
        "limelight-alone": f"{PROJECT}-alone",
        "127.0.0.1:8001": f"127.0.0.1:{free_port()}",
        "limelight_bundles:/bundles:ro limelight\n": f"{PROJECT}_bundles:/bundles:ro limelight:{NAME}\n",
        "LIMELIGHT_TAG=latest": f"LIMELIGHT_TAG={NAME}",
        "/etc/limelight/tls": str(certificate(tmp_path / "tls")),
    }
    pages = "".join(command.printed for command in commands())
    assert [printed for printed in substitutions if printed not in pages] == []
    clip = render_clip(frames=20, width=64, height=48).data
    try:
        yield Walk(folder, Client(folder, port, clip), substitutions)
    finally:
        down = ["docker", "compose", "down", "--volumes", "--timeout", "1"]
        subprocess.run(down, cwd=folder, env=environment(), check=False)
        images = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "limelight").split()
        for revision in git(folder, "log", "--all", "--format=%h").split():
            if f"limelight:{revision}" in images:
                docker("rmi", f"limelight:{revision}")


def clone(folder: Path) -> Path:
    """Return a fresh clone of the project. The next release is there for ``git pull``."""
    upstream = folder / "upstream"
    upstream.mkdir()
    copy_project(upstream)
    (upstream / "project.tar").unlink()
    git(upstream, "init", "-q")
    git(upstream, "add", "--all")
    git(upstream, "commit", "-q", "-m", "Release")
    git(folder, "clone", "-q", str(upstream), "clone")
    for file in (upstream / "deploy/gateway/nginx.conf", upstream / "deploy/prometheus/prometheus.yml"):
        file.write_text(f"# next release\n{file.read_text(encoding='utf-8')}", encoding="utf-8")
    git(upstream, "commit", "-q", "-a", "-m", "Next release")
    return folder / "clone"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=Test", "-c", "user.email=test@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def certificate(folder: Path) -> Path:
    """Write ``tls.crt`` and ``tls.key`` for localhost into a new folder."""
    folder.mkdir()
    files = ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    what = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run(["openssl", "req", *what, *files], check=True, capture_output=True)
    (folder / "tls.key").chmod(0o644)  # the gateway runs as another user
    return folder


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

        def log_request(self, code: object = "-", size: object = "-") -> None:
            """Print nothing."""

    host = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}").strip()
    with http.server.ThreadingHTTPServer(("0.0.0.0", 0), Handler) as server:
        hook = Webhook(f"http://{host}:{server.server_port}/limelight")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hook
        server.shutdown()


def effects(walk: Walk, webhook: Webhook) -> dict[str, Callable[[], object]]:
    """Return what must become true after the command that contains the text."""
    client = walk.client

    def is_updated() -> bool:
        (prometheus,) = walk.ids("prometheus")
        configuration = docker("exec", str(prometheus), "cat", "/etc/prometheus/prometheus.yml")
        return "# next release" in configuration and walk.replicas_with(f'"limelight:{NAME}"') == 0

    def grafana_knows_its_address_and_the_client() -> bool:
        answer = client.get("/grafana/", **{"X-Real-IP": "192.0.2.1"}).json()
        settings, headers = answer["settings"], answer["headers"]
        url, secure = settings["GF_SERVER_ROOT_URL"], settings["GF_SECURITY_COOKIE_SECURE"]
        assert (url, secure) == (f"https://localhost:{client.port}/grafana/", "true")
        assert headers["X-Real-IP"] == headers["X-Forwarded-For"] != "192.0.2.1"
        return True

    return {
        "LIMELIGHT_API_KEYS=$(": lambda: client.get("/model").status_code == 401,
        "LIMELIGHT_REPLICAS=3": lambda: len(walk.containers("limelight")) == 3,
        "docker-compose.tls.yml": lambda: client.get("/health/ready").is_success,
        "docker compose up --detach grafana": grafana_knows_its_address_and_the_client,
        "LIMELIGHT_MAX_QUEUE=32": lambda: walk.replicas_with('"LIMELIGHT_MAX_QUEUE=32"') == 3,
        "git pull": is_updated,
        "git switch --detach ORIG_HEAD": lambda: walk.replicas_with(f'"limelight:{NAME}"') == 3,
        "docker-compose.alerts.yml": lambda: any('"alertname":"Test"' in body for body in webhook.received),
    }


def test_every_command_of_the_pages_works_and_loses_no_request(walk: Walk, webhook: Webhook) -> None:
    first, *others = [command for command in commands() if command.first_line not in NOT_RUN]
    expected = effects(walk, webhook)
    announced: list[tuple[float, str]] = []  # failures while the page says that the service is interrupted
    walk.run(first)
    until(lambda: walk.client.get("/health/ready").is_success, patience_s=120)
    with walk.client.running():
        for command in others:
            LOG.info("%s", command.first_line)
            start, gateway, replicas = time.monotonic(), walk.ids("gateway"), walk.ids("limelight")
            walk.run(command)
            for text in [text for text in expected if text in command.printed]:
                until(expected.pop(text), patience_s=120)
            walk.client.wait_for_answers()

            if command.interrupts:
                announced += walk.client.failures(start)
                assert all(sent < start + OUTAGE_S for sent, _ in announced)
            else:
                assert walk.client.failures(start) == [], command.printed
                assert walk.ids("gateway") == gateway, command.printed
            assert len(walk.ids("limelight")) >= len(replicas), command.printed

    assert walk.client.failures() == announced
    assert expected.keys() == set()


def test_every_command_of_the_pages_is_found() -> None:
    pages = "".join(
        page.read_text(encoding="utf-8") for page in (REPOSITORY / "README.md", REPOSITORY / "docs/operations.md")
    )
    languages = {*re.findall(r"^```(\w*)$", pages, re.MULTILINE)}
    programs = {command.printed.split()[0] for command in commands() if command.first_line not in NOT_RUN}

    assert languages <= {"sh", "", "jsonc", "nginx", "yaml", "ini"}  # commands are in `sh`
    assert programs <= PROGRAMS
