"""The gateway of ``docker compose up``, tested through its public port."""

import http.client
import json
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import pytest

from tests.docker.stack import Stack, docker, metrics_of
from tests.processes import until

RATE, BURST = 10, 20  # of deploy/gateway/nginx.conf


def check_problem(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    problem = answer.json()
    assert problem.keys() >= {"type", "title", "status", "detail", "code", "request_id"}
    assert (problem["type"], problem["code"], problem["status"]) == (f"urn:limelight:problem:{code}", code, status)
    assert problem["request_id"] == answer.headers["X-Request-ID"]


def test_a_clip_is_classified(fleet: Stack, clip: bytes) -> None:
    with fleet.client() as client:
        answer = client.post("/predict", content=clip)

    assert answer.status_code == 200
    assert len(answer.json()["attention"]["maps"]) == 40


@pytest.mark.parametrize("path", ["/", "/web/main.js", "/web/limelight.css", "/web/sample.mp4"])
def test_the_page_is_served_with_its_security_policy(fleet: Stack, path: str) -> None:
    with fleet.client() as client:
        answer = client.get(path)

    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_the_replica_logs_the_request_id_and_the_client_that_the_gateway_logs(fleet: Stack, clip: bytes) -> None:
    name = uuid.uuid4().hex
    with fleet.client() as client:
        answer = client.post("/predict", content=clip, headers={"X-Request-ID": name, "X-Forwarded-For": "192.0.2.1"})

    assert answer.headers.get_list("X-Request-ID") == [name]
    until(lambda: name in [line["request_id"] for line in fleet.gateway_log()])
    (address,) = [line["client"] for line in fleet.gateway_log() if line["request_id"] == name]
    assert replica_line(fleet, name)["client"] == address


def test_a_client_cannot_add_to_a_trace(fleet: Stack) -> None:
    name, trace = uuid.uuid4().hex, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with fleet.client() as client:
        client.get("/model", headers={"X-Request-ID": name, "traceparent": trace})

    assert "trace_id" not in replica_line(fleet, name)


def replica_line(fleet: Stack, name: str) -> dict[str, Any]:
    """Wait for a replica's access line of a request."""

    def lines() -> list[dict[str, Any]]:
        logs = "".join(docker("logs", replica) for replica in fleet.containers("limelight"))
        return [json.loads(line) for line in logs.splitlines() if f'"{name}"' in line]

    until(lines)
    (line,) = lines()
    return line


@pytest.mark.parametrize(
    ("size", "who"), [(64 * 2**20 + 1, "the service"), (66 * 2**20, "the gateway")], ids=["service", "gateway"]
)
def test_a_body_that_is_too_large_is_refused(fleet: Stack, size: int, who: str) -> None:
    with fleet.client() as client:
        answer = client.post("/predict", content=bytes(size))

    check_problem(answer, 413, "body_too_large")
    assert ("67108864" in answer.json()["detail"]) == (who == "the service")


def test_a_file_that_is_not_a_video_is_refused(fleet: Stack) -> None:
    with fleet.client() as client:
        check_problem(client.post("/predict", content=b"GIF89a no video"), 415, "unsupported_media")


@pytest.mark.parametrize("path", ["/nothing", "/grafana/", "/.problem", "/.ready"])
def test_an_unknown_path_is_refused(fleet: Stack, path: str) -> None:
    with fleet.client() as client:
        check_problem(client.get(path), 404, "not_found")


def test_a_burst_is_limited_and_the_client_served_again_later(fleet: Stack) -> None:
    with fleet.client() as client, ThreadPoolExecutor(8) as crowd:
        answers = list(crowd.map(lambda _: client.post("/predict"), range(100)))
    refused = [answer for answer in answers if answer.status_code == 429]

    assert {answer.status_code for answer in answers} == {400, 429}  # 400: they contain no clip
    for answer in refused:
        check_problem(answer, 429, "rate_limited")
        assert int(answer.headers["Retry-After"]) >= 1
    time.sleep(BURST / RATE)
    with fleet.client() as client:
        assert client.post("/predict").status_code == 400


def test_problems_of_the_gateway_follow_the_inference_protocol_too(fleet: Stack) -> None:
    with fleet.client() as client:
        answer = client.post("/v2/models/tiny/infer", content=bytes(66 * 2**20))

    check_problem(answer, 413, "body_too_large")
    assert answer.json()["error"] == answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/metrics/",
        "/metrics?x=1",
        "/limelight/metrics",
        "//metrics",
        "/%6detrics",
        "/predict/../metrics",
        "/x/..%2fmetrics",
        "/./metrics",
    ],
)
def test_the_metrics_cannot_be_reached_from_outside(fleet: Stack, path: str) -> None:
    with closing(http.client.HTTPConnection(fleet.url.removeprefix("http://"), timeout=60)) as connection:
        connection.request("GET", path)  # httpx would normalise the path
        answer = connection.getresponse()
        body = answer.read()

    assert (answer.status, json.loads(body)["code"]) == (404, "not_found")


def test_an_upload_is_streamed_to_a_replica(fleet: Stack, clip: bytes) -> None:
    replicas = fleet.containers("limelight")
    host, port = fleet.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(
            f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(clip)}\r\n\r\n".encode() + clip[:1000]
        )
        until(lambda: any("limelight_in_flight_requests 1.0" in metrics_of(replica) for replica in replicas))
        client.sendall(clip[1000:])

        assert client.recv(12) == b"HTTP/1.1 200"
