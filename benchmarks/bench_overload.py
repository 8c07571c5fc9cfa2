"""The service under overload and with slow clients: cost of refusals, goodput, and the effect on other clients.

Refusals: processor time of the server for a request that it refuses, while its only place is taken by a clip whose
decoder is stopped. Overload: each round measures the capacity with clients that wait for their answers, before and
after four times as many requests per second, because the machine's speed drifts. The load comes from the same
processors; its share of them is shown. Slow uploads: sequential requests are timed with and without 50 other clients
that upload a byte now and then; the two take turns. The tables go to standard output and to the end of
``benchmarks/RESULTS.md``.
"""

import asyncio
import contextlib
import itertools
import os
import statistics
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.load import (
    Answer,
    Connection,
    all_predicted,
    clips,
    closed_loop,
    describe,
    lateness,
    open_loop,
    quantile,
    rate_of,
    serving,
    upload,
)
from benchmarks.report import argument_parser, publish
from tests.e2e.process import Server
from tests.e2e.raw_client import stopped_decoder

DEADLINE_S = 10
DRIP_S = 0.2
SETTLE_S = 2  # time for the queue to fill up; answers before that are not counted


def main() -> None:
    """Measure, print and record."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (default 3)")
    parser.add_argument("--seconds", type=float, default=15, help="seconds of each measurement (default 15)")
    parser.add_argument("--clients", type=int, default=8, help="clients for measuring the capacity (default 8)")
    parser.add_argument("--slow", type=int, default=50, help="number of slow uploads (default 50)")
    parser.add_argument("--refusals", type=int, default=500, help="refused requests per round (default 500)")
    options = parser.parse_args()
    some = clips(8)
    requests = [upload(clip) for clip in some]
    facts = [f"Tiny stand-in bundle, {describe(some)}, deadline {DEADLINE_S} s; load from the same machine"]
    with serving(MAX_QUEUE=0, REQUEST_TIMEOUT_S=600, DECODE_TIMEOUT_S=600) as server, stopped_decoder(server):
        table = [
            "| round | processor time a refusal, ms | of that in the kernel | refusals |",
            *(f"| {number} | {refusals(server, requests, options.refusals)} |" for number in range(options.rounds + 1)),
        ]
        publish("What a refusal costs the server", facts[:1], table, record=not options.no_record)
    with serving(REQUEST_TIMEOUT_S=DEADLINE_S) as server:
        uvloop.run(closed_loop(server.port, requests, clients=2, seconds=2))
        rows = [
            uvloop.run(overload(server.port, requests, options.clients, options.seconds)) for _ in range(options.rounds)
        ]
        head = (
            "| round | capacity, clips/s | offered, clips/s | goodput, clips/s | goodput/capacity | 200 | 429 "
            "| of those with Retry-After | other | slowest 200, s since due | since sent | 99 % sent late by at most "
            "| generator, processors |"
        )
        table = [head, *(f"| {number} | {row} |" for number, row in enumerate(rows, 1))]
        publish("Overload at four times the capacity", facts, table, record=not options.no_record)
        pairs = [
            [uvloop.run(beside(server.port, requests[0], slow, options.seconds)) for slow in (0, options.slow)]
            for _ in range(options.rounds)
        ]
    publish(f"{options.slow} slow uploads", facts, slow_table(pairs), record=not options.no_record)


def refusals(server: Server, requests: Sequence[bytes], number: int) -> str:
    """Return a row: the cost of this many refusals, each over a connection of its own."""

    async def be_refused() -> None:
        for request in itertools.islice(itertools.cycle(requests), number):
            async with Connection(server.port) as client:
                answer = await client.send(request)
            if answer.status != 429:
                raise RuntimeError(f"a request was not refused: {answer.status}")

    before = processor_s(server.process.pid)
    uvloop.run(be_refused())
    user, kernel = (after - was for after, was in zip(processor_s(server.process.pid), before, strict=True))
    return f"{1000 * (user + kernel) / number:.2f} | {1000 * kernel / number:.2f} | {number}"


def processor_s(pid: int) -> tuple[float, float]:
    """Return a process's seconds in user code and in the kernel so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / ticks, int(fields[12]) / ticks


async def overload(port: int, requests: list[bytes], clients: int, seconds: float) -> str:
    """Return a row: the capacity before and after, and the answers to four times as many requests in between."""

    async def timed(load: Coroutine[Any, Any, list[Answer]]) -> tuple[list[Answer], float, float]:
        start, spent = time.perf_counter(), time.process_time()
        answers = await load
        rate = rate_of(answers, start=start + SETTLE_S, seconds=seconds - SETTLE_S)
        return answers, rate, (time.process_time() - spent) / seconds

    _, before, resting = await timed(closed_loop(port, requests, clients=clients, seconds=seconds))
    answers, goodput, working = await timed(open_loop(port, requests, rate=4 * before, seconds=seconds))
    _, after, _ = await timed(closed_loop(port, requests, clients=clients, seconds=seconds))
    statuses = Counter(answer.status for answer in answers)
    refused = [answer for answer in answers if answer.status == 429]
    with_retry_after = sum("retry-after" in answer.headers for answer in refused)
    other = {status: count for status, count in sorted(statuses.items()) if status not in (200, 429)}
    good = [answer for answer in answers if answer.status == 200]
    slowest = max((answer.seconds for answer in good), default=0)
    since_sent = max((answer.since_sent_s for answer in good), default=0)
    ratio = 2 * goodput / (before + after)
    return (
        f"{before:.1f}, then {after:.1f} | {4 * before:.1f} | {goodput:.1f} | {ratio:.0%} | {statuses[200]} "
        f"| {len(refused)} | {with_retry_after} | {other or 0} | {slowest:.2f} | {since_sent:.2f} "
        f"| {lateness(answers)} | {resting:.2f}, then {working:.2f}"
    )


async def beside(port: int, request: bytes, slow: int, seconds: float) -> Sequence[Answer]:
    """Return the answers to sequential requests, while ``slow`` other clients upload slowly."""
    uploads = [asyncio.create_task(upload_slowly(port, request)) for _ in range(slow)]
    await asyncio.sleep(1)
    answers = all_predicted(await closed_loop(port, [request], clients=1, seconds=seconds))
    for dawdler in uploads:
        dawdler.cancel()
    await asyncio.gather(*uploads, return_exceptions=True)
    return answers


async def upload_slowly(port: int, request: bytes) -> None:
    """Upload a byte now and then until cancelled; start again whenever the server closes the connection."""
    while True:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(writer), contextlib.suppress(OSError):
            writer.write(request[:1000])
            for byte in request[1000:]:
                await asyncio.sleep(DRIP_S)
                await writer.drain()  # raises if the server has closed the connection
                writer.write(bytes([byte]))


def slow_table(pairs: Sequence[Sequence[Sequence[Answer]]]) -> list[str]:
    """Return a row for each round and one of medians."""
    table = ["| round | p50 alone, ms | p50 beside, ms | ratio | p95 alone, ms | p95 beside, ms | ratio | n |"]
    ratios = []
    for number, pair in enumerate(pairs, 1):
        (alone50, beside50), (alone95, beside95) = (
            [1000 * quantile([answer.seconds for answer in answers], share) for answers in pair]
            for share in (0.50, 0.95)
        )
        ratios.append((beside50 / alone50, beside95 / alone95))
        table.append(
            f"| {number} | {alone50:.1f} | {beside50:.1f} | {ratios[-1][0]:.2f} "
            f"| {alone95:.1f} | {beside95:.1f} | {ratios[-1][1]:.2f} | {len(pair[0])}, {len(pair[1])} |"
        )
    median50, median95 = (statistics.median(column) for column in zip(*ratios, strict=True))
    return [*table, f"| median | | | {median50:.2f} | | | {median95:.2f} | |"]


if __name__ == "__main__":
    main()
