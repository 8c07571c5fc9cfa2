"""Markdown tables, lists of names, and texts of others, which stay texts."""

import re
from collections.abc import Iterable, Sequence

from service.printable import visible

# Number of names that are listed; JSON has all.
LISTED = 20
# What CommonMark and GitHub give a meaning within a line, a backslash before punctuation included. An underscore within
# a word has none.
_SPECIAL = re.compile(r"[*`\[\]|~$]|[<&](?=\S)|\\(?=[!-/:-@\[-`{-~])|(?<![^\W_])_|_(?![^\W_])")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Format a table of texts, line by line; its first column is text, the others are numbers."""
    escaped = [[plain(cell) for cell in row] for row in (header, *rows)]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(row)} |" for row in (escaped[0], rule, *escaped[1:])]


def listing(names: Sequence[str], file: str) -> str:
    """Format the first 20 names in one line; ``file`` has all of them."""
    rest = f" and {len(names) - LISTED} more, in `{file}`" if len(names) > LISTED else ""
    return f"{', '.join(map(code, names[:LISTED]))}{rest}"


def plain(text: str) -> str:
    """Escape a text, such as the name of a class, so that it is shown as it is, in one line."""
    return _SPECIAL.sub(r"\\\g<0>", _one_line(text))


def code(text: str) -> str:
    """Format a text, such as a file name or a command, as code."""
    text = _one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " * (fence != "`")  # one is taken away on each side
    return f"{fence}{space}{text}{space}{fence}"


def _one_line(text: str) -> str:
    """Escape line breaks, which would end a row or a paragraph, and what cannot be seen."""
    return visible(r"\n".join(text.splitlines()))
