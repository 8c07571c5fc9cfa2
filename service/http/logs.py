"""Logging: one JSON object per line on standard output.

Lines are formatted by the thread that logs them and written by a thread of their own. Nothing else waits for whoever
reads standard output, which may be a pager, a stopped terminal or a log driver that hangs.
"""

import json
import logging
import logging.config
import math
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import cast

# The id of the request being answered; it is added to every line logged until then.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

# Seconds between two lines of one of OpenTelemetry's loggers.
INTERVAL_S = 60

# Characters that a text and a traceback take in a line at most. A client that could write more would soon have pushed
# the lines about it out of a log of limited size.
MAX_TEXT = 2048
MAX_TRACEBACK = 8192
CUT = "..."  # stands for what is left out
LONGEST_ESCAPE = len(r"\ud83d\ude00")  # of one character

STDOUT = 1
# Bytes of lines that wait to be written: a few seconds of a busy service. Further lines are dropped.
MAX_WAITING_BYTES = 2**20
FLUSH_S = 1

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_encode = json.JSONEncoder(default=str, allow_nan=False).encode  # to ASCII: paths may contain any character


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object: time, level, logger, message, request id, fields of ``extra``, traceback.

    Long texts are cut off: a traceback at its beginning, others at their end.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request := request_id.get()) is not None:
            line["request_id"] = request
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD and name not in line}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        for name, value in line.items():
            if isinstance(value, str):
                is_traceback = name == "traceback"
                line[name] = shortened(value, MAX_TRACEBACK if is_traceback else MAX_TEXT, keep_end=is_traceback)
        try:
            return _encode(line)
        except (TypeError, ValueError, RecursionError):  # JSON has no NaN, no keys but text, and no circles
            return _encode({str(name): str(value) for name, value in line.items()})


def shortened(text: str, most: int, *, keep_end: bool = False) -> str:
    """Return a text that takes at most ``most`` characters as JSON, without the quotes.

    Args:
        text: Any text, such as a client's.
        most: The number of characters, escapes included.
        keep_end: Whether to leave out the beginning of a longer text instead of its end.
    """
    if len(text) <= most and _size(text) <= most:
        return text
    room = most - len(CUT)
    kept = text[-room:] if keep_end else text[:room]
    while (excess := _size(kept) - room) > 0:
        left_out = math.ceil(excess / LONGEST_ESCAPE)
        kept = kept[left_out:] if keep_end else kept[:-left_out]
    return CUT + kept if keep_end else kept + CUT


def _size(text: str) -> int:
    return len(_encode(text)) - len('""')


class RareFromOpenTelemetry(logging.Filter):
    """Passes one line a minute of each logger of OpenTelemetry, whose exporter logs every batch that it cannot send."""

    def __init__(self) -> None:
        super().__init__("opentelemetry")
        self._next: dict[str, float] = {}  # when the next line of a logger passes, on the clock of ``time.monotonic()``

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log the record."""
        if not super().filter(record):
            return True  # of another library
        now = time.monotonic()
        passes = now >= self._next.get(record.name, now)
        if passes:
            self._next[record.name] = now + INTERVAL_S
        return passes


class LogWriter(logging.Handler):
    """Writes the log to a file descriptor in a thread of its own, and drops lines while too many wait to be written.

    A line at level warning says how many were dropped, in their place. What cannot be written, to a full disk or a pipe
    without a reader, counts as dropped, too. The thread uses no stream of Python's: a thread that is blocked in one
    makes the interpreter abort at its end.

    Args:
        descriptor: Where to write.

    Attributes:
        on_dropped: Called with the number of lines whenever lines are dropped.
    """

    def __init__(self, descriptor: int = STDOUT) -> None:
        super().__init__()
        self.on_dropped: Callable[[int], None] = lambda lines: None
        self._descriptor = descriptor
        self._changed = threading.Condition()
        self._lines: list[bytes] = []
        self._size = 0  # of the lines, in bytes
        self._dropped = 0  # since the thread last took the lines
        self._idle = False  # whether the thread waits for lines
        self._lost = 0  # lines dropped before the next one to write
        self._torn = False  # whether only the beginning of a line was written
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Format the record and let the thread write it."""
        line = self._format(record)
        with self._changed:
            dropped = self._size >= MAX_WAITING_BYTES
            if dropped:
                self._dropped += 1
            else:
                self._lines.append(line)
                self._size += len(line)
                if self._idle:
                    self._changed.notify_all()
        if dropped:
            self.on_dropped(1)

    def flush(self) -> None:
        """Wait until every line has been written, but no longer than ``FLUSH_S``."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle and not self._lines, FLUSH_S)

    def _format(self, record: logging.LogRecord) -> bytes:
        try:
            text = self.format(record)
        except Exception as error:  # such as wrong arguments; ``logging`` would print a traceback
            where = f"{record.pathname}:{record.lineno}"
            text = self.format(_warning(f"a line of the log cannot be formatted: {type(error).__name__}", where=where))
        return text.encode() + b"\n"

    def _run(self) -> None:
        while True:
            lines, dropped = self._take()
            self._report_lost()
            for piece in _pieces(lines):
                if lost := self._write(piece):
                    self._lost += lost
                    self.on_dropped(lost)
            if dropped:
                self._lost += dropped
                self._report_lost()

    def _take(self) -> tuple[list[bytes], int]:
        """Wait for lines. Return all of them, and the number of lines dropped after them."""
        with self._changed:
            self._idle = True
            self._changed.notify_all()  # whoever waits in ``flush``
            self._changed.wait_for(lambda: self._lines)
            self._idle = False
            taken = self._lines, self._dropped
            self._lines, self._size, self._dropped = [], 0, 0
        return taken

    def _report_lost(self) -> None:
        if self._lost and not self._write(self._format(_warning("lines of the log were dropped", lines=self._lost))):
            self._lost = 0

    def _write(self, piece: bytes) -> int:
        """Write whole lines. Return the number of those that could not be written."""
        if self._torn and not self._write_all(b"\n"):
            self._torn = False
        unwritten = self._write_all(piece)
        if 0 < len(unwritten) < len(piece):
            self._torn = not piece.removesuffix(unwritten).endswith(b"\n")
        return unwritten.count(b"\n")

    def _write_all(self, data: bytes) -> bytes:
        """Write as much as can be written, however long it takes. Return the rest."""
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another program with the same pipe does not want to wait
                select.select([], [self._descriptor], [])
            except OSError:
                break
        return data


def _pieces(lines: list[bytes]) -> Iterator[bytes]:
    """Join lines as long as a pipe takes them at once, so that no other writer's text gets between their parts."""
    piece = b""
    for line in lines:
        if piece and len(piece) + len(line) > select.PIPE_BUF:
            yield piece
            piece = b""
        piece += line
    yield piece


def _warning(message: str, **facts: object) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": message, **facts}
    )


def configure_logging(level: str) -> LogWriter:
    """Log everything, uvicorn's records and Python's own messages included, through one handler.

    Args:
        level: The lowest level to log: ``debug``, ``info``, ``warning`` or ``error``.

    Returns:
        The handler.
    """
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": JsonFormatter}},
            "filters": {"rare": {"()": RareFromOpenTelemetry}},
            "handlers": {"stdout": {"()": LogWriter, "formatter": "json", "filters": ["rare"]}},
            "root": {"level": level.upper(), "handlers": ["stdout"]},
            "loggers": {
                # Uvicorn's messages about start, stop and malformed requests repeat ours. The multipart parser warns
                # about each malformed form, which the access line reports already. OpenTelemetry's span repeats what a
                # client sent as `tracestate`.
                "uvicorn": {"level": "ERROR"},
                "python_multipart": {"level": "ERROR"},
                "opentelemetry.trace.span": {"level": "ERROR"},
            },
        }
    )
    _log_what_python_prints()
    (writer,) = logging.getLogger().handlers
    return cast(LogWriter, writer)


def _log_what_python_prints() -> None:
    """Log warnings, and errors in threads and finalizers, which Python prints to standard error."""
    logger = logging.getLogger(__name__)

    def log_thread(failed: threading.ExceptHookArgs) -> None:
        thread = failed.thread.name if failed.thread else None
        logger.error("a thread failed", extra={"failed_thread": thread}, exc_info=failed.exc_value)

    def log_unraisable(failed: "sys.UnraisableHookArgs") -> None:
        logger.error("an error was ignored in %r", failed.object, exc_info=failed.exc_value)

    logging.captureWarnings(capture=True)
    threading.excepthook = log_thread
    sys.unraisablehook = log_unraisable
