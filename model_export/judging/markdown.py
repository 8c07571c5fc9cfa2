"""Markdown tables."""

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Format a table, line by line; its first column is text, the others are numbers."""
    # A line break would end the row.
    escaped = [[r"\n".join(cell.splitlines()).replace("|", r"\|") for cell in row] for row in (header, *rows)]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(row)} |" for row in (escaped[0], rule, *escaped[1:])]
