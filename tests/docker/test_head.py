"""One's own head under Compose, by the commands of docs/operations.md. The bundles are tiny, so nothing is exported."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.stack import Stack, docker, running
from tests.docker.test_fleet import load
from tests.processes import until
from tests.tiny_bundle import write_tiny_bundle

PUT = "cp -r /new next && rm -rf limelight-1 && mv next limelight-1"


def put(stack: Stack, bundle: Path) -> None:
    """Copy a bundle that was made elsewhere into the volume."""
    bundle.parent.chmod(0o755)  # the container reads it as another user
    stack.compose("run", "--rm", "--volume", f"{bundle}:/new:ro,z", "--entrypoint", "sh", "model", "-c", PUT)


def in_volume(stack: Stack, *command: str) -> str:
    """Run a program in the folder of the volume, as the user of ``model``."""
    return stack.compose("run", "--rm", "--entrypoint", command[0], "model", *command[1:])


def served(stack: Stack) -> str | None:
    """Return the version of the head that answers; ``None`` while no replica is ready."""
    with stack.client() as client:
        answer: dict[str, str] = client.get("/model").json()
    return answer.get("version")


def said_by_model(stack: Stack) -> str:
    """Return the log of the last run of ``model``."""
    container = stack.compose("ps", "--all", "--quiet", "model").strip()
    return docker("logs", container)


@pytest.fixture(scope="module")
def stack(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service whose volume contained a bundle of somebody's own head before the first ``up``."""
    folder = tmp_path_factory.mktemp("head")
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("first") / "bundle", version="first")

    def prepare(stack: Stack) -> None:
        stack.compose("build", "model")
        put(stack, bundle)

    with running(folder, "limelight-head", prepare=prepare) as stack:
        yield stack


def test_the_first_up_keeps_a_head_that_was_put_there_before(stack: Stack) -> None:
    assert served(stack) == "first"
    assert "/bundles/limelight-1 is kept because it was made from a head of your own, tiny first" in said_by_model(
        stack
    )


def test_a_new_head_is_loaded_without_losing_a_request_and_stays(stack: Stack, clip: bytes, tmp_path: Path) -> None:
    with load(stack, clip) as requests:
        put(stack, write_tiny_bundle(tmp_path / "bundle", version="second", seed=1))
        stack.compose("kill", "--signal", "HUP", "limelight")
        until(lambda: served(stack) == "second")
        stack.compose("up", "--detach")

    assert {one.status for one in requests} == {200}
    assert served(stack) == "second"
    assert "is kept because it was made from a head of your own, tiny second" in said_by_model(stack)

    stack.compose("restart", "limelight")
    until(lambda: served(stack) == "second")


def test_the_head_of_an_earlier_image_is_served_again(stack: Stack, tmp_path: Path) -> None:
    put(stack, write_tiny_bundle(tmp_path / "bundle", version="earlier"))
    in_volume(stack, "mv", "limelight-1", "limelight")
    in_volume(stack, "sh", "-c", "cp -r limelight next && rm -rf limelight-1 && mv next limelight-1")
    stack.compose("kill", "--signal", "HUP", "limelight")

    until(lambda: served(stack) == "earlier")
    assert set(in_volume(stack, "ls").split()) == {"limelight", "limelight-1"}


def test_a_head_that_may_not_be_read_is_named(stack: Stack, tmp_path: Path) -> None:
    put(stack, write_tiny_bundle(tmp_path / "bundle"))
    in_volume(stack, "chmod", "0", "limelight-1/manifest.json")
    with pytest.raises(
        AssertionError, match=r"/bundles/limelight-1/manifest.json cannot be read; let user 10001 read it"
    ):
        stack.compose("run", "--rm", "model")
