import logging

import pytest

from service.http.logs import INTERVAL_S, RareFromOpenTelemetry


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
