"""The processors that a service keeps to: those that its process may use, as set by ``taskset`` or a cpuset."""

import itertools
from pathlib import Path

import httpx
import pytest

from tests.e2e.process import PATIENCE_S, running
from tests.processes import affinities, descendants, on_one_processor

pytestmark = pytest.mark.slow


def test_every_thread_keeps_to_the_processors_of_the_process(tiny_bundle: Path, tmp_path: Path, clip: bytes) -> None:
    with on_one_processor() as ours, running(tiny_bundle, tmp_path / "log.jsonl", {}) as server:
        answer = httpx.post(f"{server.url}/predict", content=clip, timeout=PATIENCE_S, trust_env=False)
        assert answer.is_success
        processes = [server.process.pid, *itertools.chain(*descendants(server.process.pid))]

        assert len(processes) >= 3, "the server, the decoders' fork server and a decoder that waits"
        assert {affinity for process in processes for affinity in affinities(process).values()} == {ours}
