"""How the gateway finds replicas, and what it does about those that do not answer."""

import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.deploy.gateway import gateway, nginx
from tests.deploy.replicas import Fleet, Replica, fleet
from tests.processes import until

LEFT_OUT_S = 5  # `fail_timeout` in deploy/gateway/nginx.conf
JOIN_S = 10  # LEFT_OUT_S, and time to look up the name


@pytest.fixture
def replicas() -> Iterator[Fleet]:
    """No replicas at first."""
    nginx()
    with fleet(0) as none:
        yield none


@pytest.fixture
def client(replicas: Fleet, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a gateway that was started before any replica. Each request counts as another client's."""
    with gateway(tmp_path, replicas) as made, made.client() as client:
        addresses = iter(range(1, 10**6))

        def another(request: httpx.Request) -> None:
            request.headers["X-Client-Address"] = f"10.{(number := next(addresses)) >> 8 & 255}.{number & 255}.1"

        client.event_hooks["request"] = [another]
        yield client


def ask(client: httpx.Client) -> httpx.Response:
    return client.get("/model")


def predict(client: httpx.Client) -> httpx.Response:
    return client.post("/predict", content=b"clip")


def until_asked(client: httpx.Client, *replicas: Replica) -> None:
    """Send requests until the gateway has asked each replica."""
    until(lambda: ask(client).status_code and all(replica.requests for replica in replicas), JOIN_S)


KINDS = pytest.mark.parametrize("send", [ask, predict])


@KINDS
def test_the_gateway_refuses_without_replicas_and_uses_the_first_one_within_seconds(
    replicas: Fleet, client: httpx.Client, send: Callable[[httpx.Client], httpx.Response]
) -> None:
    refused = send(client)

    assert (refused.status_code, refused.json()["code"], refused.headers["Retry-After"]) == (503, "not_ready", "2")

    replica = replicas.add(ready=False)
    until_asked(client, replica)
    assert send(client).status_code == 503
    replica.ready = True
    until(lambda: send(client).status_code == 200, JOIN_S)


@KINDS
def test_all_replicas_that_become_ready_are_used_at_once(
    replicas: Fleet, client: httpx.Client, send: Callable[[httpx.Client], httpx.Response]
) -> None:
    for _ in range(2):
        replicas.add(ready=False)
    until_asked(client, *replicas.replicas)
    assert send(client).status_code == 503
    replicas.replicas[1].ready = True

    assert send(client).status_code == 200


def test_a_replica_that_joins_is_used_within_seconds(replicas: Fleet, client: httpx.Client) -> None:
    replicas.add()
    until(lambda: predict(client).status_code == 200)
    newcomer = replicas.add(ready=False)
    until_asked(client, newcomer)
    newcomer.ready = True

    until(lambda: predict(client).json().get("replica") == newcomer.address, JOIN_S)


def test_a_replica_that_hangs_costs_one_request_a_wait(replicas: Fleet, client: httpx.Client) -> None:
    hung, *_ = [replicas.add() for _ in range(3)]
    until_asked(client, *replicas.replicas)
    before = len(hung.requests)
    hung.running.clear()
    began = time.monotonic()
    statuses = [send(client).status_code for _ in range(30) for send in (ask, predict)]
    passed = time.monotonic() - began

    assert set(statuses) == {200}
    assert 1 <= len(hung.requests) - before <= 1 + passed // LEFT_OUT_S

    hung.running.set()
    until(lambda: ask(client).json()["replica"] == hung.address, JOIN_S)


@KINDS
def test_replicas_that_all_hang_are_not_ready(
    replicas: Fleet, client: httpx.Client, send: Callable[[httpx.Client], httpx.Response]
) -> None:
    only = replicas.add()
    until_asked(client, only)
    only.running.clear()
    refused = send(client)

    assert (refused.status_code, refused.json()["code"], refused.headers["Retry-After"]) == (503, "not_ready", "2")


@KINDS
def test_a_replica_that_hangs_is_left_out_even_if_clients_do_not_wait(
    replicas: Fleet, client: httpx.Client, send: Callable[[httpx.Client], httpx.Response]
) -> None:
    hung, *_ = [replicas.add() for _ in range(2)]
    until_asked(client, *replicas.replicas)
    before = len(hung.requests)
    hung.running.clear()
    client.timeout = httpx.Timeout(0.5)
    began = time.monotonic()
    for _ in range(40):
        with suppress(httpx.ReadTimeout):
            send(client)
        time.sleep(0.1)
    passed = time.monotonic() - began

    # Until the first of them has waited for 2 s, some more may be sent to it.
    assert len(hung.requests) - before <= 6 + passed // LEFT_OUT_S


def test_replicas_that_are_only_slow_fail_no_request(replicas: Fleet, client: httpx.Client) -> None:
    both = [replicas.add() for _ in range(2)]
    until_asked(client, *both)
    for replica in both:
        replica.busy_s = 2.5  # a replica that does not answer within 2 s is left out while others do
    with ThreadPoolExecutor(4) as crowd:
        answers = [crowd.submit(send, client) for send in (ask, predict) for _ in range(2)]

    assert {answer.result().status_code for answer in answers} == {200}


@KINDS
def test_a_request_that_waits_for_a_replica_that_is_removed_is_answered_by_another(
    replicas: Fleet, client: httpx.Client, send: Callable[[httpx.Client], httpx.Response]
) -> None:
    hung, *_ = [replicas.add() for _ in range(2)]
    until_asked(client, *replicas.replicas)
    hung.running.clear()
    before = len(hung.requests)
    with ThreadPoolExecutor(2) as crowd:
        answers = [crowd.submit(send, client) for _ in range(2)]
        until(lambda: len(hung.requests) > before)
        replicas.remove(hung)

    assert {answer.result().status_code for answer in answers} == {200}


def test_a_prediction_may_take_longer_than_other_requests(replicas: Fleet, client: httpx.Client) -> None:
    replicas.add().prediction_s = 3  # `proxy_read_timeout` of other requests is 2 s

    until(lambda: predict(client).status_code == 200)


def test_a_replica_that_leaves_is_missed_by_no_request(replicas: Fleet, client: httpx.Client) -> None:
    leaver, _ = [replicas.add() for _ in range(2)]
    until_asked(client, *replicas.replicas)
    leaver.ready = False  # drains
    statuses = [send(client).status_code for _ in range(20) for send in (ask, predict)]
    replicas.remove(leaver)
    statuses += [send(client).status_code for _ in range(20) for send in (ask, predict)]

    assert set(statuses) == {200}


def test_new_files_are_read_at_a_reload(replicas: Fleet, tmp_path: Path) -> None:
    replicas.add()
    with gateway(tmp_path, replicas) as made, made.client() as client:
        file = made.folder / "gateway" / "nginx.conf"
        (made.folder / "new.conf").write_text(
            file.read_text(encoding="utf-8").replace("return 200;", "return 204;"), encoding="utf-8"
        )
        (made.folder / "new.conf").replace(file)  # as git does
        assert client.get("/.alive").status_code == 200
        subprocess.run([*made.command, "-s", "reload"], check=True)

        until(lambda: client.get("/.alive").status_code == 204)
