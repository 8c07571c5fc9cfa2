from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.e2e.process import PATIENCE_S, Server, running


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tiny_bundle, tmp_path_factory.mktemp("log") / "log.jsonl", {"MAX_BODY_BYTES": "5000000"}) as server:
        yield server


@pytest.fixture
def start(tiny_bundle: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start another server, with settings by name."""
    with ExitStack() as servers:
        yield lambda **settings: servers.enter_context(running(tiny_bundle, tmp_path / "log.jsonl", settings))


@pytest.fixture
def clip_file(tmp_path: Path, clip: bytes) -> Path:
    """A file with a small clip."""
    file = tmp_path / "clip.mp4"
    file.write_bytes(clip)
    return file


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client:
        yield client
