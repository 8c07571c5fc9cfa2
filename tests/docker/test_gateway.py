"""The gateway of ``docker compose up``, tested through its public port."""

import functools
import http.client
import json
import socket
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.docker.stack import NAME, TESTS, Stack, copy_project, docker, free_port, metrics_of
from tests.processes import until

# Of deploy/gateway/nginx.conf.
RATE, BURST = 10, 20
LEFT_OUT_S = 5


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


def test_a_body_of_the_largest_size_reaches_the_service(fleet: Stack) -> None:
    with fleet.client() as client:
        check_problem(client.post("/predict", content=bytes(64 * 2**20)), 415, "unsupported_media")
        check_problem(client.post("/predict", content=bytes(64 * 2**20 + 1)), 413, "body_too_large")


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


def test_a_paused_replica_costs_one_request_a_wait(fleet: Stack) -> None:
    (replica, *others) = fleet.containers("limelight")
    with fleet.client() as client:
        until(lambda: all(client.get("/health/ready").is_success for _ in range(1 + len(others))))
    time.sleep(LEFT_OUT_S + 1)  # a replica that was not ready is left out for so long
    docker("pause", replica)
    try:
        with fleet.client() as client:
            began = time.monotonic()
            waits = [client.get("/model").elapsed.total_seconds() for _ in range(100)]
            passed = time.monotonic() - began
    finally:
        docker("unpause", replica)

    assert 1 <= sum(wait > 1.5 for wait in waits) <= 1 + passed // LEFT_OUT_S


def test_new_files_are_read_by_the_command_that_operations_md_has(fleet: Stack) -> None:
    file = fleet.folder / "deploy/gateway/nginx.conf"
    (fleet.folder / "new.conf").write_text(
        file.read_text(encoding="utf-8").replace("return 200;", "return 204;"), encoding="utf-8"
    )
    (fleet.folder / "new.conf").replace(file)  # as git does
    with fleet.client() as client:
        client.headers["Connection"] = "close"  # a reload may close an idle connection while it is used again
        assert client.get("/.alive").status_code == 200
        fleet.compose("exec", "-T", "gateway", "nginx", "-s", "reload")

        until(lambda: client.get("/.alive").status_code == 204)


def test_replicas_may_be_replaced_while_the_gateway_runs(fleet: Stack) -> None:
    (gateway,) = fleet.containers("gateway")
    fleet.compose("up", "--detach", "--force-recreate", "--no-deps", "--scale", "limelight=3", "limelight")

    assert fleet.containers("gateway") == [gateway]
    with fleet.client() as client:
        until(lambda: client.get("/health/ready").is_success)


@pytest.mark.parametrize("overlays", [[], ["docker-compose.tls.yml"]], ids=["plain", "TLS"])
def test_the_gateway_is_healthy_without_replicas_and_refuses_itself(
    engine: None, tmp_path: Path, overlays: list[str]
) -> None:
    copy_project(tmp_path)
    certificate = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -days 1"
    (tmp_path / "deploy/gateway/tls").mkdir()
    files = ["-keyout", "deploy/gateway/tls/tls.key", "-out", "deploy/gateway/tls/tls.crt"]
    subprocess.run(["openssl", *certificate.split(), *files], cwd=tmp_path, capture_output=True, check=True)
    (tmp_path / "deploy/gateway/tls/tls.key").chmod(0o644)
    tmp_path.chmod(0o755)
    port = free_port()
    url = f"{'https' if overlays else 'http'}://127.0.0.1:{port}"
    environment = {"COMPOSE_PROJECT_NAME": f"limelight-alone-{NAME}", "GATEWAY_PORT": str(port)}
    stack = Stack(tmp_path, ("docker-compose.yml", *overlays, str(TESTS / "compose.test.yml")), url, environment)
    try:
        stack.compose("up", "--detach", "--wait", "gateway")  # waits for the health check
        with httpx.Client(base_url=url, trust_env=False, verify=False, timeout=60) as client:
            answer = client.post("/predict", content=b"clip")
        limit = stack.compose("exec", "-T", "gateway", "sh", "-c", "ulimit -n")
    finally:
        stack.compose("down", "--volumes", "--timeout", "1")

    check_problem(answer, 503, "not_ready")
    assert answer.headers["Retry-After"] == "2"
    assert ("Strict-Transport-Security" in answer.headers) == bool(overlays)
    assert limit == "16384\n"


def test_a_container_says_which_files_it_cannot_read_and_starts_once_it_can(engine: None, tmp_path: Path) -> None:
    copy_project(tmp_path)
    names = ("gateway", "prometheus")
    for name in names:  # as `git clone` leaves them under umask 077
        (tmp_path / "deploy" / name).chmod(0o700)
    environment = {"COMPOSE_PROJECT_NAME": f"limelight-unreadable-{NAME}", "GATEWAY_PORT": str(free_port())}
    stack = Stack(tmp_path, ("docker-compose.yml", str(TESTS / "compose.test.yml")), "", environment)
    try:
        stack.compose("up", "--detach", "--no-deps", *names)
        for name in names:
            command = f"chmod -R a+rX deploy/{name}"
            until(functools.partial(logs_say, stack, name, f"run `{command}`"))
            subprocess.run(command.split(), cwd=tmp_path, check=True)
        stack.compose("up", "--detach", "--no-deps", "--wait", *names)
    finally:
        stack.compose("down", "--volumes", "--timeout", "1")


def logs_say(stack: Stack, service: str, words: str) -> bool:
    return words in stack.compose("logs", service)
