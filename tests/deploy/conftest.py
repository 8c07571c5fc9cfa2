from collections.abc import Iterator

import pytest

from tests.deploy.gateway import Gateway, gateway, nginx
from tests.deploy.replicas import Fleet, fleet
from tests.processes import until


@pytest.fixture(scope="module")
def replicas() -> Iterator[Fleet]:
    """Three replicas that always answer."""
    nginx()
    with fleet(3) as three:
        yield three


@pytest.fixture(scope="module")
def plain(replicas: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway of docker-compose.yml before three replicas that always answer."""
    with gateway(tmp_path_factory.mktemp("plain"), replicas) as made:
        _wait_for_replicas(made)
        yield made


@pytest.fixture(scope="module")
def secure(replicas: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The same with docker-compose.tls.yml."""
    with gateway(tmp_path_factory.mktemp("secure"), replicas, tls=True) as made:
        _wait_for_replicas(made)
        yield made


def _wait_for_replicas(made: Gateway) -> None:
    with made.client("10.0.0.3") as client:
        until(lambda: client.get("/model").is_success)
