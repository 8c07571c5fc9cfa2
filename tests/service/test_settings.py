from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings


def test_the_defaults_are_those_documented() -> None:
    settings = Settings()

    assert (settings.port, settings.bundle) == (8000, Path("bundle"))
    assert (settings.device, settings.precision) == ("auto", "auto")
    assert settings.max_body_bytes == 64 * 1024 * 1024
    assert (settings.max_duration_s, settings.max_pixels, settings.max_frames) == (600, 9_500_000, 20_000)
    assert (settings.decode_memory_bytes, settings.require_sandbox) == (2 * 1024**3, False)
    assert (settings.decode_timeout_s, settings.request_timeout_s, settings.max_queue) == (20, 60, 16)
    assert (settings.upload_timeout_s, settings.upload_memory_bytes, settings.drain_delay_s) == (10, 2**30, 5)


def test_environment_variables_set_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMELIGHT_BATCH_SIZES", "1,2,4")
    monkeypatch.setenv("LIMELIGHT_DEVICE", "cpu")

    assert Settings().batch_sizes == (1, 2, 4)
    assert Settings().device == "cpu"


def test_keywords_take_precedence_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMELIGHT_PORT", "9000")

    assert Settings(port=9001).port == 9001


@pytest.mark.parametrize(
    ("name", "value"),
    [("BATCH_SIZES", "0"), ("BATCH_SIZES", ""), ("DEVICE", "tpu"), ("PORT", "http"), ("MAX_QUEUE", "-1")],
)
def test_an_invalid_value_is_refused_by_the_name_of_its_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"LIMELIGHT_{name}", value)

    with pytest.raises(ValidationError, match=name.lower()):
        Settings()
