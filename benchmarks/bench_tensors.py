"""Stalls of the event loop while the tensors of a v2 request are parsed, as bytes and as JSON.

One clip of random frames is sent repeatedly, while another client requests ``/health/live`` every ten milliseconds: its
slowest answers show how long the event loop was blocked. A request that waits for the answer to the one before counts
from when it was due. The server runs the tiny test bundle. The table goes to
standard output and to the end of ``benchmarks/RESULTS.md``.
"""

import asyncio
import gzip
import itertools
import json
import math
import statistics
import time

import numpy as np
import uvloop

from benchmarks.load import Answer, Connection, all_predicted, quantile, serving
from benchmarks.report import argument_parser, publish

PERIOD_S = 0.01
SHAPE = (1, 40, 224, 224, 3)


def main() -> None:
    """Measure, print and record."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="requests of each encoding (default 5)")
    options = parser.parse_args()
    table = ["| body | MB | answered in, median ms | health meanwhile, p50 ms | p99 | slowest | n |"]
    with serving() as server:
        for kind, request in bodies().items():
            answers, health = uvloop.run(beside(server.port, request, options.rounds))
            seconds = statistics.median(answer.seconds for answer in answers)
            waits = [1000 * answer.seconds for answer in health]
            table.append(
                f"| {kind} | {len(request) / 1e6:.1f} | {1000 * seconds:.0f} | {quantile(waits, 0.5):.1f} "
                f"| {quantile(waits, 0.99):.1f} | {max(waits):.1f} | {len(waits)} |"
            )
    publish("Reading tensors as JSON", [], table, record=not options.no_record)


def bodies() -> dict[str, bytes]:
    """Return requests for the same clip, by the encoding of its frames."""
    frames = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    tensor = {"name": "frames", "shape": SHAPE, "datatype": "UINT8"}

    def as_json(data: object) -> bytes:
        return json.dumps({"inputs": [tensor | {"data": data}]}).encode()

    header = as_json([]).replace(b'"data": []', b'"parameters": {"binary_data_size": %d}' % frames.nbytes)
    flat = as_json(frames.ravel().tolist())
    return {
        "bytes": infer(header + frames.tobytes(), f"Inference-Header-Content-Length: {len(header)}"),
        "JSON, flat": infer(flat),
        "JSON, nested": infer(as_json(frames.tolist())),
        "JSON, flat, gzip": infer(gzip.compress(flat, 1), "Content-Encoding: gzip"),
    }


def infer(body: bytes, *headers: str) -> bytes:
    """Return a request with this body."""
    lines = ["POST /v2/models/tiny/infer HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def beside(port: int, request: bytes, number: int) -> tuple[list[Answer], list[Answer]]:
    """Return the answers to ``number`` requests, and those of the health checks that were due meanwhile."""
    health = []
    end = math.inf

    async def ask() -> None:
        async with Connection(port) as client:
            for due in itertools.count(time.perf_counter(), PERIOD_S):
                await asyncio.sleep(due - time.perf_counter())
                if due > end:
                    return
                health.append(await client.send(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", due))

    asking = asyncio.create_task(ask())
    async with Connection(port) as client:
        answers = [await client.send(request) for _ in range(number)]
    end = time.perf_counter()
    await asking
    return list(all_predicted(answers)), health


if __name__ == "__main__":
    main()
