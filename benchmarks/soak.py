"""Soak test that finds leaks: good, bad and broken clips and disconnecting clients for half an hour.

Every few seconds it samples resident memory and open files of the server and of its fork server, the number of
decoders, and the memory that they do not share. The run is flat if the last quarter's median is not much above the
second's; the first quarter warms up. The exit code is 1 if the run is not flat or the service failed a request; the
server's log of failures goes to standard error, and so does a line of progress per minute. The table of medians goes to
standard output and to the end of ``benchmarks/RESULTS.md``.
"""

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import uvloop

from benchmarks.load import Connection, clips, serving, upload
from benchmarks.report import REPOSITORY, argument_parser, publish
from model_export.rendering.figure import render_clip
from tests.processes import descendants

SAMPLE_S = 5
PROGRESS = 12  # samples from one line of progress to the next
PARTS = 10  # parts of the run, each a row of the table
CLIENTS = 6


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory in MB, open files and processes of the service at one moment."""

    server_mb: float
    fork_server_mb: float
    decoders_mb: float
    server_files: float
    fork_server_files: float
    decoders: float


# How far the last quarter's median may be above the second's. Memory is allocated in arenas, and clips differ.
TOLERANCE = Sample(server_mb=10, fork_server_mb=5, decoders_mb=100, server_files=3, fork_server_files=3, decoders=1)


def main() -> int:
    """Run, print and record. Return the exit code: 0 if the run was flat and nothing failed."""
    parser = argument_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="duration in minutes (default 30)")
    options = parser.parse_args()
    with serving() as server:
        statuses, vanished, samples = uvloop.run(soak(server.port, server.process.pid, 60 * options.minutes))
        alive = server.process.poll() is None
        failures = [line for line in server.lines() if line["level"] in {"error", "critical"}]
    for failure in failures:
        print(json.dumps(failure), file=sys.stderr)
    table = ["| minutes | " + " | ".join(field.name for field in fields(Sample)) + " |"]
    parts = min(PARTS, len(samples))
    for part, each in enumerate(medians(samples, parts), 1):
        row = " | ".join(f"{value:.1f}" for value in astuple(each))
        table.append(f"| to {options.minutes * part / parts:g} | {row} |")
    failed = sum(count for status, count in statuses.items() if status == 0 or status >= 500)
    _, second, _, last = map(astuple, medians(samples, 4))
    flat = alive and all(
        now - then <= tolerance for then, now, tolerance in zip(second, last, astuple(TOLERANCE), strict=True)
    )
    facts = [
        f"Tiny stand-in bundle, {options.minutes:g} minutes, {CLIENTS} clients, {len(samples)} samples",
        f"Answers by status: {dict(sorted(statuses.items()))}; clients that vanished: {vanished}",
        f"Flat: {'yes' if flat else 'NO'}; failures of the service: {failed}",
    ]
    publish("Soak with good and bad clips and clients that disconnect", facts, table, record=not options.no_record)
    return 0 if flat and not failed else 1


def medians(samples: Sequence[Sample], parts: int) -> list[Sample]:
    """Return the medians of consecutive parts of the run."""
    bounds = [len(samples) * part // parts for part in range(parts + 1)]
    return [
        Sample(*(statistics.median(column) for column in zip(*map(astuple, samples[start:end]), strict=True)))
        for start, end in itertools.pairwise(bounds)
    ]


async def soak(port: int, pid: int, seconds: float) -> tuple[Counter[int], int, list[Sample]]:
    """Return the answers' statuses, the number of clients that vanished, and the samples."""
    requests = [
        *map(upload, [*clips(12), *bad_clips()]),
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
        upload(bytes(400_000)).replace(b"multipart/form-data", b"text/plain"),  # answered before it is read
    ]
    end = time.monotonic() + seconds
    statuses: Counter[int] = Counter()
    vanished = itertools.count()
    samples = []

    async def client(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 - a mix, not a secret
        async with Connection(port) as connection:
            while time.monotonic() < end:
                request = chance.choice(requests)
                if chance.random() < 0.2:
                    await disconnect_early(port, request, chance.random(), chance.expovariate(20))
                    next(vanished)
                else:
                    statuses[(await connection.send(request)).status] += 1

    clients = asyncio.gather(*map(client, range(CLIENTS)))
    while not clients.done():
        await asyncio.wait([clients], timeout=SAMPLE_S)
        samples.append(sample(pid))
        if len(samples) % PROGRESS == 0:
            print(f"{len(samples) * SAMPLE_S / 60:.0f} min", samples[-1], dict(statuses), file=sys.stderr, flush=True)
    await clients
    return statuses, next(vanished), samples


async def disconnect_early(port: int, request: bytes, share: float, seconds: float) -> None:
    """Send a part of the request, or in half of the cases all of it, wait a little and disconnect."""
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(writer):
            writer.write(request[: round(2 * share * len(request))])
            await asyncio.sleep(seconds)
            writer.transport.abort()


def bad_clips() -> list[bytes]:
    """Return clips that cannot be predicted, and odd clips of the shared folder if there is one."""
    whole = render_clip(frames=60, width=160, height=120).data
    damaged = bytearray(whole)
    for place in range(2000, len(damaged), 97):
        damaged[place] ^= 0x55
    shared = REPOSITORY / (os.environ.get("LIMELIGHT_SHARED") or "../shared")
    odd = [path.read_bytes() for path in sorted((shared / "nasty").glob("*/*")) if 0 < path.stat().st_size < 500_000]
    return [whole[: len(whole) // 2], bytes(damaged), b"not a clip", bytes(100_000), *odd]


def sample(pid: int) -> Sample:
    """Sample the service now. Processes that end meanwhile count as zero."""
    [fork_server, *_], *rest = descendants(pid) or [[0]]
    decoders = [decoder for generation in rest for decoder in generation]
    return Sample(
        memory_mb(pid, "status", "VmRSS"),
        memory_mb(fork_server, "status", "VmRSS"),
        sum(memory_mb(decoder, "smaps_rollup", "Private_Dirty") for decoder in decoders),
        files(pid),
        files(fork_server),
        len(decoders),
    )


def memory_mb(pid: int, file: str, key: str) -> float:
    """Return a value in kB from a process's file in /proc, in MB."""
    with contextlib.suppress(OSError):
        if found := re.search(
            rf"^{key}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8"), re.MULTILINE
        ):
            return int(found[1]) / 1000
    return 0.0


def files(pid: int) -> int:
    """Return the number of files that a process has open."""
    with contextlib.suppress(OSError):
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
