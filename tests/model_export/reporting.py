"""A reporter that records what it receives."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from model_export.reporter import Advance, Listener, Reporter


class Recording(Reporter):
    """Keeps the lines, the rows of tables, and how far the work had come."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.rows: list[tuple[str, ...]] = []
        self.advances: list[Advance] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        self.rows += [tuple(row) for row in rows]

    def hear(self, told: str | Advance) -> None:
        self.say(told) if isinstance(told, str) else self.advances.append(told)

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        yield self.hear
