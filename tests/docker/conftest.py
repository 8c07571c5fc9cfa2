import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.docker.stack import Stack, docker, running

# For each image in docker-compose.yml, the one to use instead if no registry can be reached.
SUBSTITUTES = {
    "nginx:1.28-alpine": "nginx:stable",
    "prom/prometheus:v3.5.0": "prom/prometheus:latest",
    "prom/alertmanager:v0.28.1": "prom/alertmanager:latest",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test in this folder: it needs a Docker engine, and may have to build images."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.docker)
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def engine() -> None:
    """Docker with Compose and the public images. Only ``make docker-test`` selects these tests, which fail without."""
    if shutil.which("docker") is None:
        pytest.fail("needs Docker")
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            pytest.fail(f"needs Docker with Compose: `{' '.join(command)}` failed: {answer.stderr.strip()[-200:]}")
    for image, substitute in SUBSTITUTES.items():
        ways = (["image", "inspect", image], ["pull", "-q", image], ["tag", substitute, image])
        if all(subprocess.run(["docker", *way], capture_output=True, check=False).returncode != 0 for way in ways):
            pytest.fail(f"needs the image {image}, which cannot be pulled")


@pytest.fixture(scope="module")
def fleet(engine: None, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway, Prometheus and three replicas with the tiny bundle."""
    tiny_bundle.parent.chmod(0o755)  # the replicas run as another user
    with running(
        tmp_path_factory.mktemp("fleet"),
        "limelight-fleet",
        files=["compose.tiny.yml"],
        arguments=["--scale", "limelight=3"],
        TINY_BUNDLE=str(tiny_bundle),
    ) as stack:
        yield stack


@pytest.fixture(scope="session")
def base_bytes(engine: None) -> int:
    """Size in bytes of the base image."""
    dockerfile = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    tag = dockerfile.partition("ARG PYTHON=")[2].split()[0]
    return int(docker("image", "inspect", "--format", "{{.Size}}", f"python:{tag}"))
