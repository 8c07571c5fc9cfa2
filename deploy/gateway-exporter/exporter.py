"""Counts the gateway's answers for Prometheus.

nginx sends a line for each answer to a Unix socket (`log_format exporter` in deploy/gateway/metrics.conf). It does not
wait for a reader: lines that nobody reads are lost, and the gateway serves on.
"""

import argparse
import itertools
import re
import socket
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, start_http_server

# Statuses with a series of their own; any other one is counted as "other".
STATUSES = (
    *("200", "304", "400", "401", "403", "404", "405", "408", "411", "413", "414", "415", "417", "421", "422", "429"),
    *("431", "499", "500", "501", "502", "503", "504", "505"),
)
SOURCES = ("gateway", "replica")
ROUTES = ("prediction", "other")
# Syslog's priority, time and tag, then `log_format exporter`.
LINE = re.compile(r"<\d{1,3}>[\w: ]{1,32}: (\d{3}) (gateway|replica) (prediction|other)", re.ASCII)


class Answers:
    """The counter of the gateway's answers, in a registry of its own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._answers = Counter(
            "limelight_gateway_requests",
            "Requests that the gateway answered, by status, by who answered, and by what was asked for.",
            ["status", "source", "route"],
            registry=self.registry,
        )
        # The series exist from the start, so that `rate` counts the first answer.
        for labels in itertools.product((*STATUSES, "other"), SOURCES, ROUTES):
            self._answers.labels(*labels)

    def count(self, line: bytes) -> None:
        """Count the answer that a line of the gateway tells of; ignore a line of any other form."""
        if match := LINE.fullmatch(line.decode("ascii", "replace")):
            status, source, route = match.groups()
            self._answers.labels(status if status in STATUSES else "other", source, route).inc()


def listen(path: Path) -> socket.socket:
    """Return a datagram socket at ``path`` that every user may write to, in place of one that was left there."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(path))
    path.chmod(0o666)  # the folder decides who reaches it
    return listener


def main() -> None:
    """Count what arrives at the socket, and serve the metrics."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("socket", type=Path, help="where nginx sends its lines")
    parser.add_argument("--port", type=int, default=8081, help="where Prometheus finds the metrics")
    options = parser.parse_args()
    answers = Answers()
    start_http_server(options.port, registry=answers.registry)
    with listen(options.socket) as listener:
        while True:
            answers.count(listener.recv(4096))


if __name__ == "__main__":
    main()
