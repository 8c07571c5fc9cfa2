"""Writes docs/operations.md's table of settings from the class itself; `--check` only says whether it is current."""

import sys
from pathlib import Path

from pydantic.fields import FieldInfo

from service.settings import Settings

PAGE = Path(__file__).with_name("operations.md")
BEGIN, END = "<!-- settings: made by `make docs` -->\n", "<!-- end of settings -->\n"


def table() -> str:
    """One row a setting, in the order of the class."""
    rows = [
        f"| `LIMELIGHT_{name.upper()}` | {_default(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | |", "|---|---|---|", *rows, ""])


def _default(field: FieldInfo) -> str:
    match field.default:
        case None | ():
            return ""
        case bool():
            return f"`{str(field.default).lower()}`"
        case default:
            return f"`{default}`"


def page_with_table(page: str) -> str:
    """The page with the table renewed. Raises ValueError where it has no place for it."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name} has no place for the table between {BEGIN.strip()} and {END.strip()}")
    return f"{before}{begin}\n{table()}\n{end}{after}"


def main() -> int:
    """0 where the table is current, or has been made so; 1 where `--check` finds that it is not."""
    page = PAGE.read_text()
    renewed = page_with_table(page)
    if "--check" in sys.argv[1:]:
        return int(page != renewed)
    PAGE.write_text(renewed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
