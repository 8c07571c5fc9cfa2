"""Writes the table of settings in ``docs/operations.md`` from the class ``Settings``.

With ``--check``, writes nothing and exits with 1 if the table is out of date.
"""

import sys
from pathlib import Path

from pydantic.fields import FieldInfo

from service.settings import Settings, range_of

PAGE = Path(__file__).with_name("operations.md")
BEGIN, END = "<!-- settings: made by `make docs` -->\n", "<!-- end of settings -->\n"


def table() -> str:
    """Return a Markdown table with one row per setting, in the order of the class."""
    rows = [
        f"| `LIMELIGHT_{name.upper()}` | {_default(field)} | {field.description}{_range(field)} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows, ""])


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:  # the description says what the default depends on
        return ""
    match field.default:
        case None | () | "":
            return ""
        case bool():
            return f"`{str(field.default).lower()}`"
        case default:
            return f"`{default}`"


def _range(field: FieldInfo) -> str:
    allowed = range_of(field)
    return f" {allowed[0].upper()}{allowed[1:]}." if allowed else ""


def page_with_table(page: str) -> str:
    """Return the page with an up-to-date table.

    Raises:
        ValueError: The page lacks the comments between which the table is written.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name} lacks the comments {BEGIN.strip()} and {END.strip()}")
    return f"{before}{begin}\n{table()}\n{end}{after}"


def main() -> int:
    """Write or check the table. Returns the exit code: 1 if ``--check`` finds it out of date, otherwise 0."""
    page = PAGE.read_text(encoding="utf-8")
    renewed = page_with_table(page)
    if "--check" in sys.argv[1:]:
        return int(page != renewed)
    PAGE.write_text(renewed, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
