"""Logging: one JSON object per line on standard output."""

import json
import logging
import logging.config
import time
from contextvars import ContextVar
from datetime import UTC, datetime

# The id of the request being answered; it is added to every line logged until then.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

# Seconds between two lines of one of OpenTelemetry's loggers.
INTERVAL_S = 60

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object: time, level, logger, message, request id, fields of ``extra``, traceback."""

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
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # in ASCII: paths may contain control characters and line separators


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


def configure_logging(level: str) -> None:
    """Log everything, uvicorn's records included, through one handler.

    Args:
        level: The lowest level to log: ``debug``, ``info``, ``warning`` or ``error``.
    """
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": JsonFormatter}},
            "filters": {"rare": {"()": RareFromOpenTelemetry}},
            "handlers": {
                "stdout": {
                    "class": "logging.StreamHandler",
                    "stream": "ext://sys.stdout",
                    "formatter": "json",
                    "filters": ["rare"],
                }
            },
            "root": {"level": level.upper(), "handlers": ["stdout"]},
            "loggers": {
                # Uvicorn's messages about start, stop and malformed requests repeat ours. The multipart parser warns
                # about each malformed form, which the access line reports already.
                "uvicorn": {"level": "ERROR"},
                "python_multipart": {"level": "ERROR"},
            },
        }
    )
