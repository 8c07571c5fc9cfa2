"""What reaches the replicas, and with which headers."""

from contextlib import closing
from email.message import Message

import pytest

from tests.deploy.gateway import Gateway
from tests.deploy.replicas import Fleet
from tests.processes import until

ADDRESS = "192.0.2.1"
# What a client would have to be able to set to be taken for another, or to write into the logs and traces of others.
FORGED = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Real-IP": "203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Request-ID": "not valid: \x7f",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "tracestate": "a=b",
    "Connection": "keep-alive",
    "X-API-Key": "secret",
    "Cookie": "a=b",
}


@pytest.fixture(scope="module", autouse=True)
def found(request: pytest.FixtureRequest) -> None:
    """Waits until the gateway has looked up its replicas."""
    with request.getfixturevalue("plain").client(ADDRESS) as client:
        until(lambda: client.get("/model").status_code == 200)


def seen(replicas: Fleet) -> list[tuple[str, str, Message]]:
    return [request for replica in replicas.replicas for request in replica.requests]


def forget(replicas: Fleet) -> None:
    for replica in replicas.replicas:
        replica.requests.clear()


@pytest.mark.parametrize(("method", "path"), [("GET", "/model"), ("POST", "/predict"), ("POST", "/v2/models/m/infer")])
def test_a_replica_learns_of_the_client_from_the_gateway_alone(
    plain: Gateway, replicas: Fleet, method: str, path: str
) -> None:
    forget(replicas)
    with plain.client(ADDRESS) as client:
        assert client.request(method, path, headers={**FORGED, "Host": "limelight.example"}).status_code != 429
    (headers,) = [headers for _, asked, headers in seen(replicas) if asked == path]

    assert headers.get_all("X-Forwarded-For") == [ADDRESS]
    assert headers.get_all("X-Real-IP") == [ADDRESS]
    assert headers.get_all("X-Forwarded-Proto") == ["http"]
    assert headers.get_all("Host") == ["limelight.example"]
    assert headers.get_all("Connection") == ["close"]
    assert [len(name) for name in headers.get_all("X-Request-ID", [])] == [32]
    assert headers.get("traceparent") is headers.get("tracestate") is None
    assert headers["X-API-Key"] == "secret"


def test_the_question_for_a_ready_replica_has_nothing_of_the_client(plain: Gateway, replicas: Fleet) -> None:
    forget(replicas)
    with plain.client(ADDRESS) as client:
        client.post("/predict", content=b"clip", headers=FORGED)
    (headers,) = [headers for method, path, headers in seen(replicas) if (method, path) == ("GET", "/health/ready")]

    assert {*headers.keys()} & {*FORGED} <= {"Connection"}
    assert headers["Connection"] == "close"
    assert "Content-Length" not in headers


def test_a_valid_request_id_is_kept(plain: Gateway, replicas: Fleet) -> None:
    forget(replicas)
    with plain.client(ADDRESS) as client:
        client.get("/model", headers={"X-Request-ID": "mine-1"})

    assert [headers["X-Request-ID"] for _, _, headers in seen(replicas)] == ["mine-1"]


def test_a_replica_gets_an_upload_while_it_arrives(plain: Gateway, replicas: Fleet) -> None:
    forget(replicas)
    with closing(plain.connect()) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 10\r\n\r\nhalf ")
        until(lambda: any(path == "/predict" for _, path, _ in seen(replicas)))
        connection.sendall(b"of it")
        assert connection.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize(
    "path", ["/metrics", "/metrics/", "/prefix/metrics", "/%6detrics", "//metrics", "/a/../metrics"]
)
def test_metrics_are_asked_for_by_no_client(plain: Gateway, replicas: Fleet, path: str) -> None:
    forget(replicas)
    with closing(plain.connect()) as connection:
        connection.sendall(b"GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path.encode())
        assert connection.recv(12) == b"HTTP/1.1 404"

    assert seen(replicas) == []


@pytest.mark.parametrize("path", ["/.ready", "/.ready_again", "/.problem", "/.problem?https_required"])
def test_the_gateways_own_paths_do_not_exist_for_clients(plain: Gateway, replicas: Fleet, path: str) -> None:
    forget(replicas)
    with plain.client(ADDRESS) as client:
        answer = client.get(path)

    assert (answer.status_code, answer.json()["code"], answer.headers["Server"]) == (404, "not_found", "nginx")
    assert seen(replicas) == []


def test_grafana_may_be_sent_more_than_other_paths(plain: Gateway) -> None:
    with plain.client(ADDRESS) as client:
        assert client.post("/grafana/api/ds/query", content=bytes(500_000)).status_code == 404  # there is none


@pytest.mark.parametrize(("path", "protocol"), [("/v2/models/m/infer", True), ("/predict", False)])
def test_refusals_have_the_member_that_clients_of_the_inference_protocol_read(
    plain: Gateway, path: str, protocol: bool
) -> None:
    with plain.client(ADDRESS) as client:
        problem = client.post(path, content=bytes(65 * 2**20)).json()

    assert (problem.get("error") == problem["detail"]) is protocol
