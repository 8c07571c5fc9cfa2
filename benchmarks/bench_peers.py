"""Throughput and latency of the same network behind Limelight, LitServe and BentoML, for the same clips.

The peers are installed in an environment of their own (.bench/peers-venv, see ``make bench-peers``) and decode with
PyAV, as their users would, in as many workers as there are cores. All three run all the time and take turns. The table
goes to standard output and to the end of ``benchmarks/RESULTS.md``.
"""

import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvloop

from benchmarks.load import Answer, Connection, clips, closed_loop, describe, quantile, serving, upload
from benchmarks.report import REPOSITORY, argument_parser, publish
from tests.tiny_bundle import write_tiny_bundle

BIN = REPOSITORY / ".bench" / "peers-venv" / "bin"
PEERS = {
    "LitServe": [str(BIN / "python"), "-m", "benchmarks.peer_litserve", "{port}", "{workers}"],
    "BentoML": [
        str(BIN / "bentoml"),
        "serve",
        "benchmarks.peer_bentoml:Clips",
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
    ],
}
START_S = 120


def main() -> None:
    """Measure, print and record."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds per server (default 3)")
    parser.add_argument("--seconds", type=float, default=15, help="seconds per round (default 15)")
    parser.add_argument("--clients", type=int, default=8, help="concurrent clients (default 8)")
    options = parser.parse_args()
    some = clips(8)
    requests = [upload(clip) for clip in some]
    answers: dict[str, list[list[Answer]]] = {}
    rates: dict[str, list[float]] = {}
    with ExitStack() as started, tempfile.TemporaryDirectory() as folder:
        bundle = write_tiny_bundle(Path(folder) / "bundle")
        ports = {"Limelight": started.enter_context(serving(bundle, PRECISION="fp32")).port}
        for name, command in PEERS.items():
            ports[name] = started.enter_context(peer(command, bundle, requests[0]))
        for _ in range(options.rounds):
            for name, port in ports.items():
                start = time.perf_counter()
                got = uvloop.run(closed_loop(port, requests, clients=options.clients, seconds=options.seconds))
                answers.setdefault(name, []).append(got)
                good = sum(answer.status == 200 for answer in got)
                rates.setdefault(name, []).append(good / (max(answer.ended for answer in got) - start))
    table = ["| server | clips/s, median | min–max | p50, ms | p99, ms | failed | n |"]
    for name, rounds in answers.items():
        every = [answer for got in rounds for answer in got]
        times = [1000 * answer.seconds for answer in every if answer.status == 200]
        table.append(
            f"| {name} | {statistics.median(rates[name]):.1f} | {min(rates[name]):.1f}–{max(rates[name]):.1f} "
            f"| {quantile(times, 0.5):.0f} | {quantile(times, 0.99):.0f} | {len(every) - len(times)} | {len(every)} |"
        )
    facts = [
        f"Tiny stand-in bundle in fp32, {describe(some)}, {options.clients} clients; load from the same machine",
        f"Peers: {', '.join(versions())}",
    ]
    publish("Beside LitServe and BentoML", facts, table, record=not options.no_record)


@contextmanager
def peer(command: list[str], bundle: Path, request: bytes) -> Iterator[int]:
    """Start a peer, wait until it has answered once, and yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    workers = str(len(os.sched_getaffinity(0)))
    environment = os.environ | {
        "LIMELIGHT_BUNDLE": str(bundle),
        "PEER_WORKERS": workers,
        "BENTOML_DO_NOT_TRACK": "True",
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    words = [word.format(port=port, workers=workers) for word in command]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            words, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            uvloop.run(until_answered(port, request))
            yield port
        except TimeoutError:
            log.seek(0)
            raise RuntimeError(f"{words} did not answer: {log.read().decode()[-3000:]}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()


async def until_answered(port: int, request: bytes) -> None:
    """Wait until a clip is predicted. Raises ``TimeoutError``."""
    async with asyncio.timeout(START_S), Connection(port) as connection:
        while (await connection.send(request)).status != 200:
            await asyncio.sleep(0.5)


def versions() -> list[str]:
    """Return names and versions of the packages in the peers' environment."""
    command = [str(BIN / "python"), "-m", "pip", "list", "--format=freeze"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    named = ("litserve==", "bentoml==", "onnxruntime==", "av==", "uvicorn==")
    return [line.replace("==", " ") for line in listed if line.startswith(named)]


if __name__ == "__main__":
    main()
