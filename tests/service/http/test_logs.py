import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.logs import INTERVAL_S, JsonFormatter, LogWriter, RareFromOpenTelemetry, request_id, shortened
from tests.processes import until

Log = Callable[[logging.LogRecord], dict[str, Any]]


@pytest.fixture
def log() -> Iterator[Log]:
    """Log a record; return the line that was written."""
    source, target = os.pipe()
    writer = LogWriter(target)
    writer.setFormatter(JsonFormatter())

    def log(record: logging.LogRecord) -> dict[str, Any]:
        writer.handle(record)
        writer.flush()
        line = os.read(source, 2**16)
        assert line.isascii()
        assert line.count(b"\n") == 1
        return strictly(line)

    yield log
    os.close(source)


def strictly(line: bytes) -> dict[str, Any]:
    """Parse JSON without Python's extensions, such as NaN."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    parsed: dict[str, Any] = json.loads(line, parse_constant=refuse)
    return parsed


def record(message: str = "text", *arguments: object, **extra: object) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "any", "levelname": "INFO", "msg": message, "args": arguments, **extra})


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError


CIRCLE: list[object] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    "extra",
    [
        float("nan"),
        float("-inf"),
        {"a": [float("nan")]},
        {(1, 2): 3},
        CIRCLE,
        b"\xff",
        "\u2028\x85\x9b\ud800€",
        object(),
    ],
)
def test_whatever_a_field_holds_the_line_is_json_in_ascii(log: Log, extra: object) -> None:
    line = log(record(extra=extra))

    assert line["message"] == "text"
    assert "extra" in line


@pytest.mark.parametrize("broken", [record("%d", "text"), record("%s %s", "one"), record("%s", Unprintable())])
def test_a_record_that_cannot_be_formatted_is_a_warning_with_its_place(log: Log, broken: logging.LogRecord) -> None:
    broken.pathname, broken.lineno = "module.py", 7
    line = log(broken)

    assert line["level"] == "warning"
    assert line["message"].startswith("a line of the log cannot be formatted: ")
    assert line["where"] == "module.py:7"


TEXTS = st.text(st.characters() | st.sampled_from('\x00"\\\u2028\ud800\U0001f600'), max_size=200)


@given(text=TEXTS, most=st.integers(20, 100), keep_end=st.booleans())
def test_a_long_text_is_cut_off_to_what_it_takes_as_json(text: str, most: int, keep_end: bool) -> None:
    short, whole = shortened(text, most, keep_end=keep_end), len(json.dumps(text)) - 2
    size = len(json.dumps(short)) - 2

    if whole <= most:
        assert short == text
    else:
        assert most - 12 < size <= most
        assert text.endswith(short.removeprefix("...")) if keep_end else text.startswith(short.removesuffix("..."))


def test_no_text_of_a_record_makes_a_long_line(log: Log) -> None:
    line = log(record("m" * 10**6, reason="\U0001f600" * 10**6, traceback="first" + "\x00" * 10**6 + "last"))

    assert len(json.dumps(line)) < 2 * 2048 + 8192 + 200
    assert line["message"].startswith("mmm")
    assert line["traceback"].startswith("...")
    assert line["traceback"].endswith("last")


def test_fields_cannot_replace_those_of_the_log(log: Log) -> None:
    line = log(record(level="critical", logger="another", time="now"))

    assert (line["level"], line["logger"]) == ("info", "any")
    assert line["time"] != "now"


@pytest.mark.parametrize("cut", [1, 20])
def test_a_line_that_a_full_disk_cut_off_ends_before_the_next_and_counts_as_dropped(
    monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    written, first = bytearray(), record("first")
    line = JsonFormatter().format(first).encode() + b"\n"
    room = len(line) - cut

    def write(_: int, data: bytes) -> int:
        taken = data[: room - len(written)]
        if not taken:
            raise OSError(errno.ENOSPC, "full")
        written.extend(taken)
        return len(taken)

    monkeypatch.setattr(os, "write", write)
    dropped: list[int] = []
    writer = LogWriter()
    writer.setFormatter(JsonFormatter())
    writer.on_dropped = dropped.append
    writer.handle(first)
    until(lambda: dropped == [1])
    room += 10_000
    writer.handle(record("second"))
    until(lambda: written.count(b"\n") == 3)  # after the line that was cut off, the warning and the second line

    torn, *whole = bytes(written).splitlines()
    warning, second = map(strictly, whole)
    assert torn == line[:-cut]
    assert (warning["message"], warning["lines"]) == ("lines of the log were dropped", 1)
    assert second["message"] == "second"


def test_a_line_has_the_id_of_its_request(log: Log) -> None:
    token = request_id.set("seven")
    within = log(record())
    request_id.reset(token)

    assert within["request_id"] == "seven"
    assert "request_id" not in log(record())


def test_what_python_prints_by_itself_is_logged() -> None:
    code = """
import threading, warnings
from service.http.logs import configure_logging
configure_logging("info")
warnings.warn("first")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
class Broken:
    def __del__(self):
        1 / 0
Broken()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)

    lines = [strictly(line) for line in ended.stdout.splitlines()]
    assert ended.stderr == b""
    assert [line["level"] for line in lines] == ["warning", "error", "error"]
    for line in lines[1:]:
        assert line["traceback"].endswith("\nZeroDivisionError: division by zero")


def test_each_logger_of_opentelemetry_logs_one_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    rare = RareFromOpenTelemetry()

    def passes(name: str) -> bool:
        return bool(rare.filter(logging.LogRecord(name, logging.ERROR, "", 0, "text", None, None)))

    assert [passes("opentelemetry.a"), passes("opentelemetry.b"), passes("service"), passes("service")] == [True] * 4
    assert not passes("opentelemetry.a")
    now += INTERVAL_S
    assert passes("opentelemetry.a")
