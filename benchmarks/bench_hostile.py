"""What hostile clients cost a good one: latency of predictions and memory of the service, with and without attacks.

A good client sends one prediction after the other: first alone, then beside the attacks, then alone again, because the
machine's speed drifts. ``--attacks`` chooses the attacks that ``attacks.py`` describes: those on ``connections``, where
``--many`` adds clients that never read, against few file descriptors, or those on the ``core``.

With ``--image`` the service runs in a container with 2 GiB of memory and 256
file descriptors and without a gateway, else in a process of this machine. Memory is flat if the median of the last
quarter is at most 1.1 times that of the second. The exit code is 1 if the p95 rises by more than half, memory is not
flat or the good client misses an answer.
"""

import asyncio
import contextlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.attacks import CORE, Attack, attacked, endless_head, never_read, upload_slowly
from benchmarks.load import Answer, clips, closed_loop, describe, quantile, serving, upload
from benchmarks.report import argument_parser, publish
from tests.processes import descendants
from tests.tiny_bundle import write_tiny_bundle

MEMORY_LIMIT, FILE_LIMIT = "2g", 256
SAMPLE_S = 0.5
SETTLE_S = 10  # between the phases, and from the beginning of the attacks to that of the good client


@dataclass(frozen=True, slots=True)
class Service:
    """A service under test: its port, and a function that returns its memory in MB."""

    port: int
    memory_mb: Callable[[], float]


def main() -> int:
    """Measure, print and record. Return the exit code."""
    parser = argument_parser(__doc__)
    parser.add_argument("--attacks", choices=("connections", "core"), default="connections")
    parser.add_argument("--seconds", type=float, default=60, help="seconds of each phase (default 60)")
    parser.add_argument("--clients", type=int, default=4, help="clients of each attack (default 4)")
    parser.add_argument("--many", type=int, default=30, help="clients of the attack on file descriptors (default 30)")
    parser.add_argument("--uploads", type=int, default=17, help="slow uploads at a time (default 17)")
    parser.add_argument("--image", help="image of the service to run in a container, such as limelight:latest")
    options = parser.parse_args()
    attacks: dict[Attack, int] = dict.fromkeys(CORE, options.clients)
    if options.attacks == "connections":
        attacks = {
            endless_head: options.clients,
            never_read: options.clients + options.many,
            upload_slowly: options.uploads,
        }
    with containerised(options.image) if options.image else local() as service:
        requests = [upload(clip) for clip in clips(1)]
        uvloop.run(closed_loop(service.port, requests, clients=2, seconds=2))
        phases = [measure(service, requests, options.seconds, chosen) for chosen in ({}, attacks, {})]
    alone = [answer for phase in (phases[0], phases[2]) for answer in phase.answers]
    ratio = p95(phases[1].answers) / p95(alone)
    growth = statistics.median(phases[1].quarter(4)) / statistics.median(phases[1].quarter(2))
    table = [
        "| phase | answers of the good client | p50, ms | p95, ms | memory by quarters, MB |",
        *(f"| {name} | {phase.row()} |" for name, phase in zip(("alone", "attacked", "alone"), phases, strict=True)),
    ]
    where = f"container with {MEMORY_LIMIT} of memory" if options.image else "process of this machine"
    facts = [
        f"Tiny stand-in bundle in a {where}; {describe(clips(1))}; {options.seconds:g} s a phase",
        f"Attackers: {', '.join(f'{count} {attack.__name__}' for attack, count in attacks.items())}",
        f"p95 attacked / alone: {ratio:.2f}; memory, last quarter / second quarter: {growth:.2f}",
    ]
    publish("A good client beside hostile ones", facts, table, record=not options.no_record)
    missed = sum(answer.status != 200 for phase in phases for answer in phase.answers)
    return int(ratio > 1.5 or growth > 1.1 or missed > 0)


@dataclass(frozen=True, slots=True)
class Phase:
    """The good client's answers, and samples of the service's memory in MB."""

    answers: Sequence[Answer]
    memory: Sequence[float]

    def quarter(self, number: int) -> Sequence[float]:
        """Return the samples of a quarter, 1 to 4."""
        size = len(self.memory) // 4
        return self.memory[(number - 1) * size : number * size]

    def row(self) -> str:
        """Return the cells of the phase's row."""
        statuses = Counter(answer.status for answer in self.answers)
        quarters = ", ".join(f"{statistics.median(self.quarter(number)):.0f}" for number in range(1, 5))
        seconds = [answer.seconds for answer in self.answers]
        return f"{dict(statuses)} | {1000 * quantile(seconds, 0.5):.0f} | {1000 * p95(self.answers):.0f} | {quarters}"


def p95(answers: Sequence[Answer]) -> float:
    """Return the 95th percentile of the answers' times in seconds."""
    return quantile([answer.seconds for answer in answers], 0.95)


def measure(service: Service, requests: list[bytes], seconds: float, attacks: Mapping[Attack, int]) -> Phase:
    """Run the good client for a while, beside attackers."""
    time.sleep(SETTLE_S)
    with attacked(service.port, attacks) if attacks else contextlib.nullcontext():
        time.sleep(SETTLE_S if attacks else 0)
        return uvloop.run(_measure(service, requests, seconds))


async def _measure(service: Service, requests: list[bytes], seconds: float) -> Phase:
    good = asyncio.create_task(closed_loop(service.port, requests, clients=1, seconds=seconds))
    memory = []
    while not good.done():
        memory.append(await asyncio.to_thread(service.memory_mb))
        await asyncio.wait([good], timeout=SAMPLE_S)
    return Phase(await good, memory)


@contextmanager
def local() -> Iterator[Service]:
    """Run the service in a process of this machine. Its memory is that of the server and of all its children."""
    with serving() as server:
        pids = [server.process.pid]

        def memory_mb() -> float:
            pids[1:] = [pid for generation in descendants(pids[0]) for pid in generation]
            return sum(proportional_mb(pid) for pid in pids)

        yield Service(server.port, memory_mb)


def proportional_mb(pid: int) -> float:
    """Return a process's memory in MB, with memory that it shares divided by the number of processes; 0 if it ended."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
        if found := re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE):
            return int(found[1]) / 1000
    return 0.0


@contextmanager
def containerised(image: str) -> Iterator[Service]:
    """Run the service in a container. Its memory is what the container's limit counts."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_tiny_bundle(Path(folder) / "bundle")
        Path(folder).chmod(0o755)
        options = ["--memory", MEMORY_LIMIT, "--memory-swap", MEMORY_LIMIT, "--ulimit", f"nofile={FILE_LIMIT}"]
        mount = ["--volume", f"{bundle}:/bundles/limelight-1:ro", "--publish", "127.0.0.1::8000", "--rm", "--detach"]
        container = docker("run", *options, *mount, "--init", "--read-only", "--tmpfs", "/tmp", image)  # noqa: S108
        try:
            port = int(docker("port", container, "8000").rpartition(":")[2])
            wait_until_ready(container)
            yield Service(port, lambda: container_mb(container))
        finally:
            docker("rm", "--force", container)


def docker(*arguments: str) -> str:
    """Run a command of Docker's CLI and return what it prints."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def wait_until_ready(container: str) -> None:
    """Wait until the container's health check passes."""
    while (state := docker("inspect", "--format", "{{.State.Health.Status}}", container)) != "healthy":
        if state != "starting":
            raise RuntimeError(f"the container is {state}: {docker('logs', container)}")
        time.sleep(1)


def container_mb(container: str) -> float:
    """Return the memory that the container uses, in MB."""
    used = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", container).split("/")[0].strip()
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", used).groups()  # type: ignore[union-attr]
    return float(number) * {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit] / 1e6


if __name__ == "__main__":
    sys.exit(main())
