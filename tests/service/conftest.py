from pathlib import Path

import pytest

from service.video.rendering import render_clip
from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def clip() -> bytes:
    return render_clip(frames=50, width=160, height=120).data
