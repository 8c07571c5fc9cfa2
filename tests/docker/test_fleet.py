"""Replicas that join and leave under load."""

import itertools
import json
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest

from tests.docker.stack import Stack, address_of, docker
from tests.processes import until

CLIENTS = 3
PAUSE_S = 0.4  # keeps the clients below the gateway's rate limit
NOTICE_S = 5  # time within which the gateway notices that a replica is gone


@dataclass(frozen=True)
class SentRequest:
    """A request, when it was sent, and its answer."""

    name: str
    sent: float
    status: int
    body: str


@contextmanager
def load(stack: Stack, clip: bytes) -> Iterator[list[SentRequest]]:
    """Have ``CLIENTS`` clients send a clip again and again until the block ends. Yield their requests so far."""
    requests: list[SentRequest] = []
    over = threading.Event()

    def ask(client: httpx.Client) -> None:
        while not over.is_set():
            name, sent = uuid.uuid4().hex, time.monotonic()
            answer = client.post("/predict?attention=false", content=clip, headers={"X-Request-ID": name})
            requests.append(SentRequest(name, sent, answer.status_code, answer.text))
            over.wait(PAUSE_S)

    with stack.client() as client, ThreadPoolExecutor(CLIENTS) as crowd:
        clients = [crowd.submit(ask, client) for _ in range(CLIENTS)]
        try:
            until(lambda: len(requests) > 5 * CLIENTS)
            yield requests
            so_far = len(requests)
            until(lambda: len(requests) > so_far + 5 * CLIENTS)
        finally:
            over.set()
        for done in clients:
            done.result()


def scale(stack: Stack, replicas: int) -> None:
    stack.compose("up", "--detach", "--no-recreate", "--scale", f"limelight={replicas}", "limelight")
    until(lambda: stack.ask_prometheus(f"sum(limelight_ready) == {replicas}"), patience_s=120)


@pytest.fixture
def three(fleet: Stack) -> Stack:
    """The fleet, scaled to three replicas."""
    scale(fleet, 3)
    return fleet


def test_prometheus_sees_every_replica(three: Stack, clip: bytes) -> None:
    with load(three, clip):
        until(lambda: len(three.ask_prometheus("limelight_stage_seconds_count{stage='inference'} > 0")) == 3, 120)

    assert len(three.ask_prometheus('up{job="limelight"} == 1')) == 3


def test_a_replica_that_joins_fails_no_request(three: Stack, clip: bytes) -> None:
    before = set(three.containers("limelight"))
    with load(three, clip) as requests:
        scale(three, 4)
        (newcomer,) = (address_of(replica) for replica in set(three.containers("limelight")) - before)
        until(lambda: any(line["replica"].endswith(newcomer) for line in three.gateway_log()))
    scale(three, 3)

    assert {one.status for one in requests} == {200}


def test_a_replica_that_is_stopped_fails_no_request(three: Stack, clip: bytes) -> None:
    leaver = three.containers("limelight")[0]
    with load(three, clip) as requests:
        docker("stop", "--time", "90", leaver)
        log = docker("logs", leaver)
        exit_code = docker("inspect", "--format", "{{.State.ExitCode}}", leaver).strip()
    served = {
        line["request_id"]
        for line in map(json.loads, filter(lambda line: line.startswith("{"), log.splitlines()))
        if line["message"] == "request" and line["path"] == "/predict" and line["status"] == 200
    }
    answered = {one.name for one in requests if one.status == 200}

    assert exit_code == "0"
    assert served & answered  # the replica was in use
    assert {one.status for one in requests} == {200}


@pytest.mark.parametrize(
    ("setting", "patience", "said"),
    [("LIMELIGHT_MAX_QUEUE=no", "60", "it must be a whole number"), ("LIMELIGHT_LOG_LEVEL=debug", "0", "not healthy")],
)
def test_an_update_that_fails_leaves_the_old_replicas_serving(
    three: Stack, clip: bytes, setting: str, patience: str, said: str
) -> None:
    before = three.containers("limelight")
    (three.folder / "limelight.env").write_text(f"{setting}\n", encoding="utf-8")
    try:
        with load(three, clip) as requests:
            done = subprocess.run(
                ["deploy/rolling-update.sh"],
                cwd=three.folder,
                env=os.environ | three.environment | {"COMPOSE_FILE": ":".join(three.files), "PATIENCE_S": patience},
                capture_output=True,
                text=True,
                check=False,
            )
    finally:
        (three.folder / "limelight.env").unlink()

    assert (done.returncode, said in done.stderr, "the old ones keep serving" in done.stderr) == (1, True, True)
    assert sorted(three.containers("limelight")) == sorted(before)
    assert {one.status for one in requests} == {200}


def test_a_replica_that_is_killed_fails_only_its_own_requests(three: Stack, clip: bytes) -> None:
    victim = three.containers("limelight")[0]
    address = address_of(victim)
    with load(three, clip) as requests:
        docker("kill", victim)
        killed = time.monotonic()
        until(lambda: time.monotonic() > killed + NOTICE_S)
    failed = {one.name: one for one in requests if one.status != 200}
    sent_to = {line["request_id"]: line["replica"] for line in three.gateway_log()}

    assert len(failed) <= CLIENTS
    assert all(one.sent < killed + NOTICE_S for one in failed.values())
    assert {sent_to[name].rpartition(" ")[2] for name in failed} <= {address}
    assert {json.loads(one.body)["code"] for one in failed.values()} <= {"bad_gateway", "gateway_timeout"}

    until(lambda: three.ask_prometheus('limelight:instances{job="limelight"} == 2'), patience_s=120)


def test_the_gateway_answers_503_if_there_is_no_replica(three: Stack, clip: bytes) -> None:
    three.compose("kill", "limelight")
    answers: list[httpx.Response] = []

    def refused(client: httpx.Client) -> bool:
        answers.append(client.post("/predict", content=clip))
        return answers[-1].status_code == 503

    with three.client() as client:
        until(lambda: refused(client))

    assert (answers[-1].json()["code"], int(answers[-1].headers["Retry-After"])) == ("not_ready", 2)


def test_every_panel_of_the_dashboard_shows_data(three: Stack, clip: bytes) -> None:
    dashboard = json.loads((three.folder / "deploy/grafana/dashboards/limelight.json").read_text(encoding="utf-8"))
    queries = {
        target["expr"].replace("$__rate_interval", "1m")
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    }

    def shown(query: str) -> bool:
        return any(sample["value"][1] != "NaN" for sample in three.ask_prometheus(query))

    with load(three, clip), three.client() as client:
        for _ in range(10):
            client.post("/predict", content=b"GIF89a no video")
            time.sleep(1)  # a rate needs two samples
        empty = [query for query in sorted(queries) if not any(shown(query) for _ in itertools.repeat(None, 3))]

    assert len(queries) > 15
    assert empty == []
