"""The first ``docker compose up`` of a fresh clone, and one's own head, both with the real export: minutes each."""

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from model_export.revisions import CURRENT
from tests.conftest import REPOSITORY
from tests.docker.stack import Stack, running
from tests.processes import until


@pytest.fixture(scope="module")
def stack(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("first"), "limelight-first") as stack:
        yield stack


@pytest.fixture(scope="module")
def jumping(shared: Path) -> bytes:
    return next((shared / "clips/ucf101/JumpingJack").glob("*.avi")).read_bytes()


def label(stack: Stack, clip: bytes) -> str:
    with stack.client() as client:
        answer = client.post("/predict", content=clip)
    assert answer.status_code == 200
    best: str = answer.json()["predictions"][0]["label"]
    return best


@contextmanager
def one_client(stack: Stack, clip: bytes) -> Iterator[list[int]]:
    """Have one client send a clip after the other until the block ends. Yield the statuses of its answers."""
    statuses: list[int] = []
    over = threading.Event()

    def ask() -> None:
        with stack.client() as client:
            while not over.is_set():
                statuses.append(client.post("/predict", content=clip).status_code)

    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(ask)
        try:
            yield statuses
        finally:
            over.set()
        asking.result()


def test_a_real_clip_is_classified_after_the_first_up(stack: Stack, jumping: bytes) -> None:
    assert label(stack, jumping) == "JumpingJack"


def test_ones_own_head_is_served_until_the_shipped_one_is_asked_for(stack: Stack, jumping: bytes) -> None:
    head = stack.folder / "runs" / "head"
    shutil.copytree(REPOSITORY / "model_export" / "pretrained", head)
    facts = json.loads((head / "head.json").read_text(encoding="utf-8"))
    # Only the shipped head is exported at other revisions.
    changed = {
        "name": "mine",
        "labels": [f"my {label}" for label in facts["labels"]],
        "revisions": CURRENT.model_dump(),
    }
    (head / "head.json").write_text(json.dumps(facts | changed), encoding="utf-8")
    export = ("export", "--output", "/bundles/limelight-1", "--force")

    with one_client(stack, jumping) as statuses:
        stack.compose("run", "--rm", "--volume", "./runs/head:/head:ro,z", "model", *export, "--head", "/head")
        stack.compose("kill", "--signal", "HUP", "limelight")
        until(lambda: label(stack, jumping) == "my JumpingJack", 300)
        stack.compose("up", "--detach")
        assert label(stack, jumping) == "my JumpingJack"

        stack.compose("run", "--rm", "model", *export)
        stack.compose("kill", "--signal", "HUP", "limelight")
        until(lambda: label(stack, jumping) == "JumpingJack", 300)

    assert set(statuses) == {200}
