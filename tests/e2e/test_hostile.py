"""A server that receives damaged clips, and whose decoders are killed at random.

These tests take a few seconds; ``make soak-decoders`` takes a minute and sends every variant of every odd file.
"""

import logging
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from model_export.rendering.figure import render_clip
from tests.e2e.process import PATIENCE_S, Server
from tests.processes import decoders, descendants, until

CLIENTS = 8
SOAK_S = float(os.environ.get("LIMELIGHT_SOAK_S") or 0)
SAMPLE = 1 if SOAK_S else 12  # every 12th variant is enough for `make test`

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + 60 * SOAK_S)]


@contextmanager
def assert_nothing_is_left_behind(server: Server, clip: bytes) -> Iterator[httpx.Client]:
    """Yield a client. Afterwards, check that the server has as many processes and descriptors as before."""

    def count_resources() -> tuple[int, int]:
        """Count child processes and open descriptors, after a clip is answered and its decoder has ended."""
        answer = httpx.post(f"{server.url}/predict", content=clip, timeout=PATIENCE_S, trust_env=False)
        assert answer.status_code == 200
        until(lambda: not decoders(server.process.pid))
        descriptors = Path(f"/proc/{server.process.pid}/fd")
        return len(descendants(server.process.pid)[0]), len(list(descriptors.iterdir()))

    before = count_resources()
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client:
        yield client
    until(lambda: count_resources() == before)


@pytest.fixture(scope="module")
def large() -> bytes:
    """A clip that takes a while to decode."""
    return render_clip(frames=40, width=1280, height=720).data


def outcome(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json().get("code")


def test_a_killed_decoder_fails_only_its_own_clip(server: Server, clip: bytes, large: bytes) -> None:
    over = threading.Event()

    def ask(client: httpx.Client) -> Counter[tuple[int, str | None]]:
        answers: Counter[tuple[int, str | None]] = Counter()
        last = False
        while not last:
            last = over.is_set()
            answers[outcome(client.post("/predict?attention=false", content=large))] += 1
        return answers

    def kill(client: httpx.Client) -> int:
        rng, killed, end = random.Random(0), 0, time.monotonic() + max(3, SOAK_S)
        try:
            while time.monotonic() < end or killed < 3:
                if victims := decoders(server.process.pid):
                    os.kill(rng.choice(victims), signal.SIGKILL)
                    killed += 1
                time.sleep(rng.uniform(0, 0.3))
                assert client.get("/health/ready").status_code == 200
        finally:
            over.set()
        return killed

    with assert_nothing_is_left_behind(server, clip) as client, ThreadPoolExecutor(CLIENTS + 1) as crowd:
        killed = crowd.submit(kill, client)
        asked = [crowd.submit(ask, client) for _ in range(CLIENTS)]
        answers = sum((each.result() for each in asked), Counter[tuple[int, str | None]]())

    logger.warning("%d decoders killed: %s", killed.result(), dict(answers))
    assert answers.keys() <= {(200, None), (422, "decoder_crashed")}
    assert answers[200, None] > 0
    assert 0 < answers[422, "decoder_crashed"] <= killed.result()


def test_a_killed_fork_server_fails_no_clip(server: Server, clip: bytes, large: bytes) -> None:
    with assert_nothing_is_left_behind(server, clip) as client, ThreadPoolExecutor(CLIENTS) as crowd:
        asked = [crowd.submit(client.post, "/predict?attention=false", content=large) for _ in range(CLIENTS)]
        until(lambda: decoders(server.process.pid))
        (fork_server,) = descendants(server.process.pid)[0]
        os.kill(fork_server, signal.SIGKILL)
        answers = [each.result() for each in asked]

    assert [outcome(answer) for answer in answers] == [(200, None)] * CLIENTS


def test_a_disconnect_ends_the_decoder_of_that_client(server: Server, clip: bytes, large: bytes) -> None:
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(large)}\r\n\r\n"

    def stop_a_decoder() -> bool:
        for pid in decoders(server.process.pid):
            os.kill(pid, signal.SIGSTOP)  # so that it cannot finish the clip
            return True
        return False

    with assert_nothing_is_left_behind(server, clip):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(head.encode() + large)
            until(stop_a_decoder)
        until(lambda: not decoders(server.process.pid), patience_s=15)  # less than the decode timeout


def variants(folder: Path) -> Iterator[bytes]:
    """Yield each odd file, complete and truncated at every tenth of its length, and 200 files with flipped bits."""
    files = [path.read_bytes() for path in sorted(folder.glob("*/*")) if path.stat().st_size]
    for data in files:
        yield data
        yield from (data[: len(data) * tenths // 10] for tenths in range(1, 10))
    rng = random.Random(0)
    for _ in range(200):
        flipped = bytearray(rng.choice(files))
        for _ in range(rng.randint(1, 20)):
            # Half of them at the start, where the structure of most files is.
            reach = len(flipped) if rng.random() < 0.5 else min(len(flipped), 4096)
            flipped[rng.randrange(reach)] ^= 1 << rng.randrange(8)
        yield bytes(flipped)


def test_every_odd_file_is_answered_or_refused_without_a_crash(server: Server, shared: Path, clip: bytes) -> None:
    answers: Counter[tuple[int, str | None]] = Counter()
    with assert_nothing_is_left_behind(server, clip) as client:
        for number, data in enumerate(variants(shared / "nasty")):
            if number % SAMPLE == 0:
                answers[outcome(client.post("/predict?attention=false", content=data))] += 1
                assert client.get("/health/ready").status_code == 200

    logger.warning("answers: %s", dict(answers))
    assert {status for status, _ in answers} == {200, 415, 422}
    assert (422, "decoder_crashed") not in answers
