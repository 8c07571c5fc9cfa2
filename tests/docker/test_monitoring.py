"""What Prometheus learns of a running gateway, and that it notices one that is gone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.docker.stack import Stack, docker, running
from tests.processes import until

ANSWERS = 'sum(limelight_gateway_requests_total{status="%s", source="%s", route="%s"})'


@pytest.fixture(scope="module")
def one(engine: None, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway, Prometheus and one replica with the tiny bundle."""
    tiny_bundle.parent.chmod(0o755)  # the replicas run as another user
    folder = tmp_path_factory.mktemp("one")
    with running(folder, "limelight-one", files=["compose.tiny.yml"], TINY_BUNDLE=str(tiny_bundle)) as stack:
        until(lambda: number(stack, "sum(limelight:instances)") == 3, patience_s=120)
        yield stack


def number(stack: Stack, expression: str) -> float | None:
    """Return the value of an instant query with one answer, or None if it has none."""
    samples = stack.ask_prometheus(expression)
    return float(samples[0]["value"][1]) if samples else None


def test_the_answers_of_the_gateway_are_counted(one: Stack, clip: bytes) -> None:
    with one.client() as client:
        client.post("/predict", content=clip).raise_for_status()
        client.post("/predict", content=b"GIF89a no video")
        client.get("/metrics")

    until(lambda: number(one, ANSWERS % ("200", "replica", "prediction")) == 1)
    until(lambda: number(one, ANSWERS % ("415", "replica", "prediction")) == 1)
    until(lambda: number(one, ANSWERS % ("404", "gateway", "other")) == 1)


def test_the_refusals_of_the_gateway_are_counted(one: Stack) -> None:
    with one.client() as client, ThreadPoolExecutor(8) as crowd:
        answers = [answer.status_code for answer in crowd.map(lambda _: client.post("/predict"), range(200))]
    refused = answers.count(429)

    assert refused > 20
    # On a busy machine nginx does not wait until the exporter has read a line.
    until(lambda: refused / 2 < (number(one, ANSWERS % ("429", "gateway", "prediction")) or 0) <= refused)


def test_the_connections_of_the_gateway_are_counted(one: Stack) -> None:
    until(lambda: len(one.ask_prometheus("limelight_gateway_connections")) == 3)
    assert number(one, "sum(limelight_gateway_connections)")  # the scrape's own


def test_the_gateways_port_for_prometheus_cannot_be_reached_from_outside(one: Stack) -> None:
    with one.client() as client:
        assert client.get("/metrics", headers={"Host": "gateway:8081"}).status_code == 404
    (gateway,) = one.containers("gateway")
    assert "8081" not in docker("port", gateway)


def test_prometheus_watches_and_bounds_its_own_disk(one: Stack) -> None:
    until(lambda: number(one, "prometheus_tsdb_retention_limit_bytes") == 4 * 2**30, patience_s=120)
    assert number(one, "prometheus_tsdb_storage_blocks_bytes") is not None


def test_the_gateway_serves_without_the_exporter_and_finds_it_again(one: Stack) -> None:
    one.compose("kill", "gateway-exporter")
    with one.client() as client:
        for _ in range(20):
            assert client.get("/health/ready").status_code == 200
        until(lambda: number(one, 'limelight:instances{job="gateway-exporter"}') == 0, patience_s=120)
        one.compose("start", "gateway-exporter")

        def counted() -> bool:
            client.get("/health/ready")
            return bool(number(one, ANSWERS % ("200", "replica", "other")))

        until(counted)


def test_no_alert_fires_for_a_fleet_that_is_well(one: Stack) -> None:
    until(lambda: number(one, 'limelight:instances{job="gateway-exporter"}') == 1, patience_s=120)
    until(lambda: one.ask_prometheus('ALERTS{alertname!="LimelightGatewayRejections"}') == [], patience_s=120)


def test_a_gateway_that_is_stopped_raises_an_alert_until_it_is_back(one: Stack) -> None:
    down = 'ALERTS{alertname="LimelightGatewayDown"}'
    one.compose("stop", "--timeout", "1", "gateway")
    until(lambda: one.ask_prometheus(down), patience_s=120)
    one.compose("start", "gateway")
    until(lambda: not one.ask_prometheus(down), patience_s=120)
