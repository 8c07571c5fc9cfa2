"""A check for the measurements of the attention that go into the report."""

import json
from typing import Any


def assert_reportable(result: Any) -> None:
    """The result is JSON without NaN, and Markdown lines with one table of two columns."""
    assert json.loads(json.dumps(result.as_dict(), allow_nan=False)) == result.as_dict()
    lines = result.markdown()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) > 4
    assert {line.count("|") for line in table} == {3}
    assert not any("\n" in line for line in lines)
