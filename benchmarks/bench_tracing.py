"""What tracing costs: the time to answer with and without it, in turn, against a receiver of OTLP on this machine.

Two servers run the tiny test bundle, one of which traces every request. One client sends them the same clip in turn, so
that both meet the same conditions. The table goes to standard output and to the end of ``benchmarks/RESULTS.md``.
"""

import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import uvloop

from benchmarks.load import Answer, Connection, all_predicted, clips, describe, quantile, upload
from benchmarks.report import argument_parser, publish
from tests.e2e.collector import collecting
from tests.e2e.process import running
from tests.tiny_bundle import write_tiny_bundle

WARM_UP = 20


def main() -> None:
    """Measure, print and record."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=500, help="requests to each server (default 500)")
    options = parser.parse_args()
    some = clips(1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        collector = stack.enter_context(collecting())
        bundle = write_tiny_bundle(folder / "bundle")
        tracing = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        servers = [
            stack.enter_context(running(bundle, folder / name, {"DEVICE": "cpu"}, variables=variables))
            for name, variables in (("off", {}), ("on", tracing))
        ]
        without, traced = uvloop.run(in_turn([server.port for server in servers], upload(some[0]), options.rounds))
    added = [1000 * (on.seconds - off.seconds) for off, on in zip(without, traced, strict=True)]
    table = [
        "| tracing | p50 ms | p95 ms | n |",
        row("off", without),
        row("on", traced),
        f"| median of on − off in pairs | {statistics.median(added):.2f} | | {len(added)} |",
    ]
    facts = [f"{describe(some)}; {len(collector.spans)} spans received; load and receiver on the same machine"]
    publish("What tracing costs", facts, table, record=not options.no_record)


async def in_turn(ports: Sequence[int], request: bytes, rounds: int) -> list[Sequence[Answer]]:
    """Return the answers of each server; the requests alternate, and each round begins with the other server."""
    answers: list[list[Answer]] = [[] for _ in ports]
    async with Connection(ports[0]) as first, Connection(ports[1]) as second:
        turn = [(first, answers[0]), (second, answers[1])]
        for _ in range(WARM_UP + rounds):
            for connection, of_server in turn:
                of_server.append(await connection.send(request))
            turn.reverse()
    return [all_predicted(of_server)[WARM_UP:] for of_server in answers]


def row(name: str, answers: Sequence[Answer]) -> str:
    """Return the columns of one server."""
    return (
        f"| {name} | {p50(answers):.2f} | {quantile([1000 * a.seconds for a in answers], 0.95):.2f} | {len(answers)} |"
    )


def p50(answers: Sequence[Answer]) -> float:
    """Return the median time to answer in milliseconds."""
    return statistics.median(1000 * answer.seconds for answer in answers)


if __name__ == "__main__":
    main()
