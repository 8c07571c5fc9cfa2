"""A reporter that records what it receives."""

from collections.abc import Iterable, Sequence

from model_export.reporter import Reporter


class Recording(Reporter):
    """Keeps the lines and the rows of tables."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.rows: list[tuple[str, ...]] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        self.rows += [tuple(row) for row in rows]
