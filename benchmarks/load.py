"""Generates load from one process, with raw HTTP/1.1 requests that leave the cores to the server.

The clients of ``closed_loop`` wait for their answers, which finds the capacity. ``open_loop`` sends requests at a fixed
rate whether or not there are answers, as independent users do. Run both in uvloop, which sends without copying.

A request's clock starts when the request was due, not when it was sent. A generator that is late would otherwise leave
out the wait that its clients had ("coordinated omission"). ``lateness`` says how late it was.
"""

import asyncio
import itertools
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.report import REPOSITORY
from model_export.rendering.figure import render_clip
from tests.e2e.process import Server, running
from tests.tiny_bundle import write_tiny_bundle

BOUNDARY = "limelight-benchmark"
PATIENCE_S = 600
MOST_LATE_S = 0.05  # a generator that is later than this has too much to do


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request.

    Attributes:
        status: The HTTP status; 0 if the connection ended without an answer.
        seconds: Time from when the request was due to the answer's last byte.
        late_s: How much of that had passed when the request was sent.
        ended: When that byte arrived, on the clock of ``time.perf_counter()``.
        headers: The headers by lower-case name.
        body: The body.
    """

    status: int
    seconds: float
    late_s: float
    ended: float
    headers: Mapping[str, str]
    body: bytes

    @property
    def since_sent_s(self) -> float:
        """Time from when the request was sent to the answer's last byte, in seconds."""
        return self.seconds - self.late_s


class Connection:
    """One client's connection, reopened whenever the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._close()

    async def send(self, request: bytes, due: float | None = None) -> Answer:
        """Send a complete request and return its answer.

        Args:
            request: The bytes of the request.
            due: When the request was to be sent, on the clock of ``time.perf_counter()``; by default now.
        """
        sent = time.perf_counter()
        due = sent if due is None else due
        try:
            async with asyncio.timeout(PATIENCE_S):
                status, headers, body = await self._exchange(request)
        except (OSError, EOFError, TimeoutError):
            status, headers, body = 0, {}, b""
        if status == 0 or headers.get("connection") == "close":
            self._close()
        ended = time.perf_counter()
        return Answer(status, ended - due, sent - due, ended, headers, body)

    async def _exchange(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
        reader, writer = self._streams
        writer.write(request)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        return int(first.split()[1]), headers, await reader.readexactly(int(headers["content-length"]))

    def _close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def upload(clip: bytes) -> bytes:
    """Return a request that sends a clip as the file ``file`` of a form to ``/predict``."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="clip.avi"\r\n'
    body = f"{head}Content-Type: video/x-msvideo\r\n\r\n".encode() + clip + f"\r\n--{BOUNDARY}--\r\n".encode()
    return (
        "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def closed_loop(port: int, requests: Sequence[bytes], *, clients: int, seconds: float) -> list[Answer]:
    """Run clients that each send the next request once they have an answer. Requests begun in time are finished.

    A request is due when the one before it has been answered.
    """
    answers: list[Answer] = []
    turn = itertools.cycle(requests)
    end = time.perf_counter() + seconds

    async def client() -> None:
        due = None
        async with Connection(port) as connection:
            while time.perf_counter() < end:
                answers.append(await connection.send(next(turn), due))
                due = answers[-1].ended

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def open_loop(port: int, requests: Sequence[bytes], *, rate: float, seconds: float) -> list[Answer]:
    """Send ``rate`` requests per second, evenly spaced, each over a connection of its own."""

    async def client(request: bytes, due: float) -> Answer:
        async with Connection(port) as connection:
            return await connection.send(request, due)

    start = time.perf_counter()
    waiting = []
    for number, request in zip(range(math.ceil(rate * seconds)), itertools.cycle(requests), strict=False):
        due = start + number / rate
        await asyncio.sleep(due - time.perf_counter())
        waiting.append(asyncio.create_task(client(request, due)))
    return await asyncio.gather(*waiting)


def all_predicted(answers: Sequence[Answer]) -> Sequence[Answer]:
    """Return the answers unchanged. Raises ``RuntimeError`` if one is an error, whose time would mean nothing."""
    for answer in answers:
        if answer.status != 200:
            raise RuntimeError(f"a request failed with status {answer.status}: {answer.body[:500]!r}")
    return answers


def lateness(answers: Sequence[Answer]) -> str:
    """Return how late 99 % of the requests were sent at most, and whether the generator lagged behind.

    Where it did, it offered less than it was to, and a part of the answers' times is its own.
    """
    late_s = quantile([answer.late_s for answer in answers], 0.99)
    return f"{1000 * late_s:.1f} ms{' (THE GENERATOR LAGS)' if late_s > MOST_LATE_S else ''}"


def rate_of(answers: Sequence[Answer], *, start: float, seconds: float) -> float:
    """Return the predictions per second that were completed within ``seconds`` after ``start``."""
    return sum(answer.status == 200 and 0 <= answer.ended - start <= seconds for answer in answers) / seconds


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def clips(count: int) -> list[bytes]:
    """Return UCF-101 clips of the shared folder, nearest to 0.5 MB first, or rendered clips if there are none."""
    shared = REPOSITORY / (os.environ.get("LIMELIGHT_SHARED") or "../shared")
    paths = sorted((shared / "clips" / "ucf101").glob("*/*.avi"), key=lambda path: abs(path.stat().st_size - 500_000))
    if paths:
        return [path.read_bytes() for path in paths[:count]]
    return [render_clip(frames=150 + 5 * number, codec="mpeg4", container="avi").data for number in range(count)]


def describe(some: Sequence[bytes]) -> str:
    """Describe the clips for a report."""
    sizes = [len(clip) / 1e6 for clip in some]
    return f"{len(some)} clips of {min(sizes):.2f}–{max(sizes):.2f} MB"


@contextmanager
def serving(bundle: Path | None = None, **settings: object) -> Iterator[Server]:
    """Run ``limelight serve`` with settings by name until it is ready; by default with the tiny test bundle."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = bundle or write_tiny_bundle(Path(folder) / "bundle")
        given = {name: str(value) for name, value in settings.items()}
        with running(bundle, Path(folder) / "log.jsonl", given) as server:
            yield server
