"""Text is read and written in UTF-8, whatever the locale. Ruff's PLW1514 finds only paths whose type it can infer."""

import ast
from collections.abc import Iterator

import pytest

from tests.conftest import REPOSITORY

FOLDERS = ("service", "model_export", "tests", "benchmarks", "deploy", "docs", "examples")
TEXT_MODES = {"r", "w", "a", "x", "r+", "w+", "a+", "rt", "wt"}


def without_encoding(source: str) -> Iterator[str]:
    """Find calls that read or write text in the locale's encoding."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        of_path = isinstance(node.func, ast.Attribute) and name == "open"
        mode = node.args[0 if of_path else 1 :][:1]  # `open(path, mode)`, but `path.open(mode)`
        opens_text = name in ("open", "fdopen") and (
            any(isinstance(value, ast.Constant) and value.value in TEXT_MODES for value in mode)
            or len(node.args) == (0 if of_path else 1)
        )
        reads = name == "read_text" and not node.args
        writes = name == "write_text" and len(node.args) == 1
        if (opens_text or reads or writes) and not {"encoding", None} & {option.arg for option in node.keywords}:
            yield f"line {node.lineno}: {ast.unparse(node)}"


def test_every_text_file_is_read_and_written_in_a_named_encoding() -> None:
    files = [file for folder in FOLDERS for file in (REPOSITORY / folder).rglob("*.py")]
    assert len(files) > 300
    files.append(REPOSITORY / "limelight_start.py")
    found = [f"{file}, {call}" for file in files for call in without_encoding(file.read_text(encoding="utf-8"))]
    assert not found, 'pass encoding="utf-8"'


@pytest.mark.parametrize(
    "call",
    ["path.read_text()", "(a / b).write_text(x)", "path.open()", "path.open('a')", "open(path, 'w')", "open(path)"],
)
def test_calls_in_the_locales_encoding_are_found(call: str) -> None:
    assert list(without_encoding(call)) == [f"line 1: {call}"]


@pytest.mark.parametrize(
    "call", ["path.open('rb')", "open(path, 'rb')", "av.open(path, 'r')", "Image.open(file)", "path.read_text('utf-8')"]
)
def test_calls_that_read_bytes_or_name_an_encoding_are_not(call: str) -> None:
    assert not list(without_encoding(call))
