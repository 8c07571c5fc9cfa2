"""A running server conforms to its OpenAPI document, for requests that Schemathesis generates from it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import positive_data_acceptance

from service.http.app import create_app
from service.settings import Settings
from tests.e2e.process import PATIENCE_S, Server, running

pytestmark = pytest.mark.slow

KEY = "schemathesis-7f3a"
CREDENTIALS = {
    "X-API-Key": KEY,
    "Authorization": f"Bearer {KEY}",
}  # either is enough, but Schemathesis invents the one that is missing

load_all_checks()
schemathesis.serializer.alias("video/*", "application/octet-stream")
# The document that the server publishes at /openapi.json.
described = schemathesis.openapi.from_dict(create_app(Settings(api_keys=KEY)).openapi())


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tiny_bundle, tmp_path_factory.mktemp("log") / "log.jsonl", {"API_KEYS": KEY}) as server:
        yield server


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False  # no proxy for a server on this machine
        yield session


@described.parametrize()
@settings(max_examples=15, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_every_answer_conforms_to_the_openapi_document(
    case: schemathesis.Case[Any], server: Server, session: requests.Session
) -> None:
    # A schema cannot express which bytes are a clip, or how many numbers a shape needs.
    opaque: list[Any] = [positive_data_acceptance] if case.method == "POST" else []

    case.call_and_validate(
        base_url=server.url, session=session, headers=CREDENTIALS, excluded_checks=opaque, timeout=PATIENCE_S
    )
