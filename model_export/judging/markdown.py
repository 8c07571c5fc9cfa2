"""Markdown tables and lists of names."""

from collections.abc import Iterable, Sequence

# Number of names that are listed; JSON has all.
LISTED = 20


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Format a table, line by line; its first column is text, the others are numbers."""
    escaped = [[_one_line(cell).replace("|", r"\|") for cell in row] for row in (header, *rows)]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(row)} |" for row in (escaped[0], rule, *escaped[1:])]


def listing(names: Sequence[str], file: str) -> str:
    """Format the first 20 names in one line; ``file`` has all of them."""
    rest = f" and {len(names) - LISTED} more, in `{file}`" if len(names) > LISTED else ""
    return f"{', '.join(f'`{_one_line(name)}`' for name in names[:LISTED])}{rest}"


def _one_line(text: str) -> str:
    """Escape line breaks, which would end a row or a paragraph."""
    return r"\n".join(text.splitlines())
