"""Throughput and latency of the service by its numbers of threads and decoders.

There is a server for each case; all of them run, and take turns with 8 clients, then with one. Niceness is that of the
fork server, which its decoders inherit. Processor time is that of the server and its decoders together. The table goes
to standard output and to the end of ``benchmarks/RESULTS.md``.
"""

import json
import os
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.load import Answer, all_predicted, clips, closed_loop, describe, quantile, serving, upload
from benchmarks.report import argument_parser, publish
from tests.e2e.process import Server
from tests.processes import descendants

CLIENTS = 8


@dataclass(frozen=True, slots=True)
class Case:
    """Settings to measure; 0 threads means one per core."""

    threads: int = 0
    spinning: bool = False
    decode_workers: int = len(os.sched_getaffinity(0))
    niceness: int = 0


CASES = (
    Case(),
    Case(spinning=True),
    Case(threads=1),
    Case(decode_workers=1),
    Case(decode_workers=2 * Case().decode_workers),
    Case(niceness=10),
    Case(spinning=True, niceness=10),
)


def main() -> None:
    """Measure, print and record."""
    parser = argument_parser(__doc__)
    parser.add_argument("--bundle", type=Path, help="folder of the bundle (default: the tiny test bundle)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds per case (default 3)")
    parser.add_argument("--seconds", type=float, default=6, help="seconds per round and number of clients (default 6)")
    options = parser.parse_args()
    some = clips(8)
    requests = [upload(clip) for clip in some]
    loaded: dict[Case, list[float]] = {case: [] for case in CASES}
    spent: dict[Case, list[float]] = {case: [] for case in CASES}
    inference: dict[Case, list[float]] = {case: [] for case in CASES}
    alone: dict[Case, list[Answer]] = {case: [] for case in CASES}
    with ExitStack() as started:
        servers = {case: start(case, options.bundle, started) for case in CASES}
        for _ in range(options.rounds):
            for case, server in servers.items():
                begun, before = time.perf_counter(), processor_seconds(server)
                answers = uvloop.run(closed_loop(server.port, requests, clients=CLIENTS, seconds=options.seconds))
                spent[case].append(1000 * (processor_seconds(server) - before) / len(answers))
                loaded[case].append(len(all_predicted(answers)) / (max(answer.ended for answer in answers) - begun))
                inference[case] += [json.loads(answer.body)["timings_ms"]["inference"] for answer in answers]
                answers = uvloop.run(closed_loop(server.port, requests, clients=1, seconds=options.seconds))
                alone[case] += all_predicted(answers)
    head = (
        "| threads | spinning | decoders | niceness | clips/s, 8 clients | min–max | processor ms/clip "
        "| inference then, ms | p50, 1 client, ms | p95 | n |"
    )
    table = [head]
    for case in CASES:
        times = [1000 * answer.seconds for answer in alone[case]]
        table.append(
            f"| {case.threads or 'all'} | {'yes' if case.spinning else 'no'} | {case.decode_workers} | {case.niceness} "
            f"| {statistics.median(loaded[case]):.2f} | {min(loaded[case]):.2f}–{max(loaded[case]):.2f} "
            f"| {statistics.median(spent[case]):.0f} | {statistics.median(inference[case]):.1f} "
            f"| {quantile(times, 0.5):.1f} | {quantile(times, 0.95):.1f} | {len(times)} |"
        )
    facts = [f"{options.bundle or 'Tiny stand-in bundle'}, {describe(some)}; load from the same machine"]
    publish("Threads and decoders", facts, table, record=not options.no_record)


def start(case: Case, bundle: Path | None, started: ExitStack) -> Server:
    """Start a server with the case's settings."""
    server = started.enter_context(
        serving(bundle, DEVICE="cpu", THREADS=case.threads, SPINNING=case.spinning, DECODE_WORKERS=case.decode_workers)
    )
    os.setpriority(os.PRIO_PROCESS, fork_server(server), os.getpriority(os.PRIO_PROCESS, 0) + case.niceness)
    return server


def fork_server(server: Server) -> int:
    """Return the id of the fork server's process."""
    return descendants(server.process.pid)[0][0]


def processor_seconds(server: Server) -> float:
    """Return the processor seconds of the server, its fork server and all decoders that have ended."""
    own, _ = ticks(server.process.pid)
    return (own + sum(ticks(fork_server(server)))) / os.sysconf("SC_CLK_TCK")


def ticks(pid: int) -> tuple[int, int]:
    """Return a process's own ticks and those of its ended children, user and system together (see proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])


if __name__ == "__main__":
    main()
