"""Large uploads in a container with little memory: the service refuses them instead of being killed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from tests.e2e.process import PATIENCE_S, Server, running
from tests.e2e.raw_client import RawClient, stopped_decoder
from tests.memory_group import memory_group
from tests.processes import until

pytestmark = pytest.mark.slow

CLIENTS = 17
CLIP_BYTES = 60_000_000
FITTING = 2  # clips of this size fit into an eighth of the memory


@pytest.fixture(scope="module")
def confined(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that may take 1 GiB, and decodes one clip at a time."""
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    settings = {"DECODE_WORKERS": "1", "DECODE_TIMEOUT_S": "300", "UPLOAD_TIMEOUT_S": "60", "REQUEST_TIMEOUT_S": "300"}
    with memory_group(2**30) as group, running(tiny_bundle, log, settings, wrapper=group.entering) as server:
        yield server


def overloads(server: Server) -> int:
    """Return how many requests were refused because of overload."""
    return sum(line.get("code") == "overloaded" for line in server.lines())


@pytest.mark.parametrize("complete", [False, True], ids=["arriving", "waiting for a decoder"])
def test_uploads_that_together_exceed_the_memory_are_refused(confined: Server, clip: bytes, complete: bool) -> None:
    sent, before = bytes(CLIP_BYTES if complete else CLIP_BYTES - 1), overloads(confined)

    def upload(client: RawClient) -> None:
        with suppress(OSError):  # the server has answered already, and closed the connection
            client.post(f"Content-Length: {CLIP_BYTES}", body=sent)

    with stopped_decoder(confined), ExitStack() as opened, ThreadPoolExecutor(CLIENTS) as threads:
        clients = [opened.enter_context(RawClient(confined.port)) for _ in range(CLIENTS)]
        list(threads.map(upload, clients))
        until(lambda: overloads(confined) - before >= CLIENTS - FITTING)
        answer = next(client for client in clients if client.is_answered()).answer()
    with httpx.Client(base_url=confined.url, timeout=PATIENCE_S, trust_env=False) as client:
        until(lambda: confined.metric("in_flight_requests") == 0)
        afterwards = client.post("/predict", content=clip)

    assert (answer.status, answer.code) == (429, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    assert afterwards.status_code == 200
