from pathlib import Path

import pytest
from pydantic import ValidationError

from service import settings as module
from service.cgroup import MemoryLimit
from service.settings import Settings


def test_the_defaults_are_those_documented() -> None:
    settings = Settings()

    assert (settings.port, settings.bundle) == (8000, Path("bundle"))
    assert (settings.device, settings.precision) == ("auto", "auto")
    assert settings.max_body_bytes == 64 * 1024 * 1024
    assert (settings.max_duration_s, settings.max_pixels, settings.max_frames) == (600, 9_500_000, 20_000)
    assert (settings.decode_memory_bytes, settings.require_sandbox) == (2 * 1024**3, False)
    assert (settings.decode_timeout_s, settings.request_timeout_s, settings.max_queue) == (20, 60, 16)
    assert (settings.upload_timeout_s, settings.drain_delay_s) == (10, 5)


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
    [("BATCH_SIZES", "0"), ("DEVICE", "tpu"), ("PORT", "http"), ("PORT", "http://10.0.0.1:80"), ("MAX_QUEUE", "-1")],
)
def test_an_invalid_value_is_refused_by_the_name_of_its_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"LIMELIGHT_{name}", value)

    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_empty_variables_count_as_not_set(monkeypatch: pytest.MonkeyPatch, blank: str) -> None:
    defaults = Settings()
    for name in Settings.model_fields.keys() - {"api_keys"}:
        monkeypatch.setenv(f"LIMELIGHT_{name.upper()}", blank)

    assert Settings() == defaults


@pytest.mark.parametrize("address", ["tcp://10.96.12.7:8000", "udp://10.96.12.7:53", "sctp://[fd00::7]:9", "TCP://x\n"])
def test_the_port_of_a_kubernetes_service_is_not_the_setting(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("LIMELIGHT_PORT", address)

    assert Settings().port == 8000
    assert Settings(port=9001).port == 9001


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("port", "9000\n", 9000),
        ("device", " cpu\n", "cpu"),
        ("ui", "false\n", False),
        ("bundle", "/bundles/limelight\n", Path("/bundles/limelight")),
        ("batch_sizes", " 1, 2\n", (1, 2)),
    ],
)
def test_blanks_around_a_value_do_not_matter(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, read: object
) -> None:
    monkeypatch.setenv(f"LIMELIGHT_{name.upper()}", value)

    assert getattr(Settings(), name) == read


@pytest.mark.parametrize(("usable", "workers"), [(0.5, 1), (1.0, 1), (1.5, 2), (8.0, 8)])
def test_as_many_clips_are_decoded_at_a_time_as_processors_may_be_kept_busy(
    monkeypatch: pytest.MonkeyPatch, usable: float, workers: int
) -> None:
    monkeypatch.setattr(module, "processors", lambda: usable)

    assert Settings().decode_workers == workers
    assert Settings(decode_workers=5).decode_workers == 5


@pytest.mark.parametrize(
    ("limits", "expected"),
    [([], 2**30), ([2**33], 2**30), ([2**30], 2**27), ([2**30, 2**33], 2**27), ([2**26], 2**26)],
)
def test_request_bodies_may_take_an_eighth_of_the_memory_limit(
    monkeypatch: pytest.MonkeyPatch, limits: list[int], expected: int
) -> None:
    monkeypatch.setattr(module, "memory_limits", lambda: [MemoryLimit(Path("memory.max"), size, 0) for size in limits])

    assert Settings().upload_memory_bytes == expected
    assert Settings(upload_memory_bytes=5).upload_memory_bytes == 5
