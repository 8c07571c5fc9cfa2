"""Overhead of the service: milliseconds per clip beyond decoding and inference, and throughput against a bare loop.

Throughput is measured with 8 clients that wait for their answers, in turn with a bare loop in a process without a
server. For a real bundle, whose network takes seconds, the loop runs the engine on decoded frames. For the tiny test
bundle, where decoding takes as long, it runs the same decoder processes and the engine. The tables go to standard
output and to the end of ``benchmarks/RESULTS.md``.
"""

import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.load import PATIENCE_S, Answer, all_predicted, clips, closed_loop, describe, quantile, serving, upload
from benchmarks.report import REPOSITORY, argument_parser, publish
from service.isolation.processes import DecoderProcesses, start_decoders
from service.model.bundle import load_bundle
from service.model.engine import Engine
from service.video.decoder import decode_clip
from service.video.limits import DecodeLimits
from tests.tiny_bundle import write_tiny_bundle

CLIENTS = 8


def main() -> None:
    """Measure, print and record, for the tiny test bundle and for the real bundle if there is one."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--bundle",
        type=Path,
        default=REPOSITORY / "bundle",
        help="folder of the real bundle (default: bundle/ of the checkout)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (default 3)")
    parser.add_argument(
        "--seconds", type=float, default=15, help="seconds of each measurement, tiny bundle (default 15)"
    )
    parser.add_argument(
        "--real-seconds", type=float, default=60, help="seconds of each measurement, real bundle (default 60)"
    )
    parser.add_argument("--only", choices=("tiny", "real"), help="measure only this bundle")
    options = parser.parse_args()
    some = clips(8)
    latency = ["| bundle | clip, MB | total, p50 ms | decode | inference | total − decode − inference | p95 | n |"]
    throughput = ["| bundle | bare loop | round | bare, clips/s | service, clips/s | ratio |"]
    with tempfile.TemporaryDirectory() as folder:
        tiny = write_tiny_bundle(Path(folder) / "bundle")
        cases = {
            "tiny": (tiny, decode_and_infer, options.seconds),
            "real": (options.bundle, infer, options.real_seconds),
        }
        for name, (bundle, loop, seconds) in cases.items():
            if options.only in (None, name) and bundle.exists():
                with serving(bundle, DEVICE="cpu", REQUEST_TIMEOUT_S=PATIENCE_S) as server:
                    latency.append(f"| {name} | " + overhead(server.port, some[0], seconds))
                    throughput += [
                        f"| {name} | {loop.__name__} | {row}"
                        for row in compare(server.port, bundle, some, loop, options.rounds, seconds)
                    ]
    facts = [f"{describe(some)}; load from the same machine"]
    publish("What the service adds to a clip", facts, latency, record=not options.no_record)
    publish(f"Throughput with {CLIENTS} clients", facts, throughput, record=not options.no_record)


def overhead(port: int, clip: bytes, seconds: float) -> str:
    """Return columns: the timings that the service reports for sequential requests."""
    answers = all_predicted(uvloop.run(closed_loop(port, [upload(clip)], clients=1, seconds=seconds)))
    timings = [json.loads(answer.body)["timings_ms"] for answer in answers]
    added = [timing["total"] - timing["decode"] - timing["inference"] for timing in timings]
    medians = [statistics.median(timing[stage] for timing in timings) for stage in ("total", "decode", "inference")]
    columns = " | ".join(f"{value:.1f}" for value in medians)
    return (
        f"{len(clip) / 1e6:.2f} | {columns} | {statistics.median(added):.2f} | {quantile(added, 0.95):.2f} "
        f"| {len(answers)} |"
    )


BareLoop = Callable[[Engine, DecoderProcesses, Sequence[bytes], float], Coroutine[Any, Any, float]]


def compare(port: int, bundle: Path, some: Sequence[bytes], loop: BareLoop, rounds: int, seconds: float) -> list[str]:
    """Return a row for each round and one of medians; the loop and the service take turns."""
    engine = Engine(load_bundle(bundle), device="cpu")
    engine.warm_up()
    requests = [upload(clip) for clip in some]
    rows, ratios = [], []
    with contextlib.closing(start_decoders(DecodeLimits(), memory_bytes=2**31)) as decoders:
        for number in range(1, rounds + 1):
            bare = uvloop.run(loop(engine, decoders, some, seconds))
            start = time.perf_counter()
            served = throughput_of(uvloop.run(closed_loop(port, requests, clients=CLIENTS, seconds=seconds)), start)
            ratios.append(served / bare)
            rows.append(f"{number} | {bare:.2f} | {served:.2f} | {served / bare:.1%} |")
    return [*rows, f"median | | | {statistics.median(ratios):.1%} |"]


def throughput_of(answers: Sequence[Answer], start: float) -> float:
    """Return the clips per second from the start to the last answer."""
    return len(all_predicted(answers)) / (max(answer.ended for answer in answers) - start)


async def infer(engine: Engine, decoders: DecoderProcesses, some: Sequence[bytes], seconds: float) -> float:
    """Return the clips per second of the engine alone, with frames decoded before."""
    frames = decode_clip(some[0]).frames
    start, count = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        engine.run([frames])
        count += 1
    return count / (time.perf_counter() - start)


async def decode_and_infer(engine: Engine, decoders: DecoderProcesses, some: Sequence[bytes], seconds: float) -> float:
    """Return the clips per second of one decoder process per core and the engine in a thread of its own."""
    decoder_free = asyncio.Semaphore(len(os.sched_getaffinity(0)))
    start, done = time.perf_counter(), 0
    with ThreadPoolExecutor(1) as thread:

        async def client(number: int) -> None:
            nonlocal done
            while time.perf_counter() < start + seconds:
                async with decoder_free:
                    clip = await decoders.decode(some[(number + done) % len(some)])
                await asyncio.get_running_loop().run_in_executor(thread, engine.run, [clip.frames])
                done += 1

        await asyncio.gather(*map(client, range(CLIENTS)))
    return done / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
